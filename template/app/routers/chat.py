"""POST /v1/chat/completions, and a clear 404 for /v1/responses."""

from fastapi import APIRouter, HTTPException, Request
from pydantic_core import to_json
from starlette.responses import Response

from app.dependencies import get_llm, read_body
from app.http.event_stream import EventStream
from app.http.exchange import exchange_of
from app.http.openapi import described
from app.http.routing import BytesRoute
from app.models import ChatRequest, ChatResponse

router = APIRouter(tags=["chat"], route_class=BytesRoute)


@router.post("/v1/chat/completions", **described(ChatRequest, ChatResponse, stream=True))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation: OpenAI's `chat.completion`, or with `stream` its chunks as server-sent events."""
    llm = await get_llm(request)
    chat = await read_body(request, ChatRequest, llm)
    if chat.stream:
        return EventStream(llm.open_stream(chat))
    answer = await llm.answer(chat, exchange_of(request.scope).held)
    return Response(to_json(answer.body), headers=answer.call.headers, media_type="application/json")


@router.api_route("/v1/responses", methods=["GET", "POST"], include_in_schema=False)
async def responses(_: Request) -> Response:
    """Say what to use instead, since OpenAI's SDKs expect this API."""
    raise HTTPException(404, "The responses API is not served here. Use chat completions: POST /v1/chat/completions.")
