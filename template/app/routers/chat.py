"""POST /v1/chat/completions, and a word to those who ask for /v1/responses."""

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

from app.dependencies import get_llm, read_body
from app.event_stream import EventStream
from app.models import ChatRequest, ChatResponse
from app.openapi import described
from app.routing import BytesRoute

router = APIRouter(tags=["chat"], route_class=BytesRoute)


@router.post("/v1/chat/completions", **described(ChatRequest, ChatResponse, stream=True))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation: OpenAI's `chat.completion`, or with `stream` its chunks as server-sent events."""
    llm = await get_llm(request)
    asked = await read_body(request, ChatRequest)
    if asked.stream:
        return EventStream(llm.events(asked), llm.record.headers)
    return Response(await llm.answer(asked), headers=llm.record.headers, media_type="application/json")


@router.api_route("/v1/responses", methods=["GET", "POST"], include_in_schema=False)
async def responses(_: Request) -> Response:
    """Say what to use instead: OpenAI's SDKs take this API for granted."""
    raise HTTPException(404, "The responses API is not served here. Use chat completions: POST /v1/chat/completions.")
