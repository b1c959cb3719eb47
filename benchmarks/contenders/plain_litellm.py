"""A plain FastAPI endpoint over `litellm.acompletion`: what most teams write first."""

import os
from collections.abc import AsyncIterator
from typing import Any

import litellm
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

litellm.suppress_debug_info = True


class ChatRequest(BaseModel):
    model: str
    messages: list[dict[str, Any]]
    stream: bool = False


app = FastAPI()


@app.post("/v1/chat/completions", response_model=None)
async def chat(request: ChatRequest) -> dict[str, Any] | StreamingResponse:
    answer = await litellm.acompletion(
        model=f"openai/{request.model}",
        messages=request.messages,
        stream=request.stream,
        api_base=os.environ["UPSTREAM"] + "/v1",
        api_key=os.environ["OPENAI_API_KEY"],
    )
    if request.stream:
        return StreamingResponse(events(answer), media_type="text/event-stream")
    body: dict[str, Any] = answer.model_dump()
    return body


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
