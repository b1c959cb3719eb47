"""A plain FastAPI endpoint over OpenAI's Python SDK with one shared client."""

import os
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel


class ChatRequest(BaseModel):
    model: str
    messages: list[dict[str, Any]]
    stream: bool = False


app = FastAPI()
client = AsyncOpenAI(base_url=os.environ["UPSTREAM"] + "/v1")


@app.post("/v1/chat/completions", response_model=None)
async def chat(request: ChatRequest) -> dict[str, Any] | StreamingResponse:
    messages: Any = request.messages
    if request.stream:
        chunks = await client.chat.completions.create(model=request.model, messages=messages, stream=True)
        return StreamingResponse(events(chunks), media_type="text/event-stream")
    answer = await client.chat.completions.create(model=request.model, messages=messages)
    return answer.model_dump()


async def events(chunks: Any) -> AsyncIterator[str]:
    async for chunk in chunks:
        yield f"data: {chunk.model_dump_json()}\n\n"
    yield "data: [DONE]\n\n"


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
