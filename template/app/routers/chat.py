"""POST /v1/chat/completions, and a clear 404 for /v1/completions."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.dependencies import get_llm, read_body
from app.errors import UnknownEndpoint
from app.http.event_stream import EventStream
from app.http.exchange import exchange_of
from app.http.json_response import JSONResponse
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
    return JSONResponse(answer.body, answer.call.headers)


@router.post("/v1/completions", include_in_schema=False)
async def completions(_: Request) -> Response:
    """Say what to use instead of the API that came before chat."""
    raise UnknownEndpoint("Completions are not served here. Use chat completions: POST /v1/chat/completions.")
