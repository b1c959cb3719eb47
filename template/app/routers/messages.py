"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, on every model."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.dependencies import get_llm, read_body
from app.dialects.message_objects import MessageObject, TokenCount
from app.dialects.messages import Messages, MessagesRequest, TokensRequest
from app.http.event_stream import EventStream
from app.http.exchange import exchange_of
from app.http.json_response import JSONResponse
from app.http.openapi import described
from app.http.routing import BytesRoute
from app.llm.bridge import TRANSLATED
from app.llm.client import LLMClient

router = APIRouter(tags=["messages"], route_class=BytesRoute)
VERSIONS = (b"anthropic-version", b"anthropic-beta")


@router.post("/v1/messages", **described(MessagesRequest, MessageObject, stream=True))
async def messages(request: Request) -> Response:
    """Answer in Anthropic's Messages API: the whole message, or with `stream` its events."""
    llm = await get_llm(request)
    asked = await _asked(request, MessagesRequest, llm)
    if asked.stream:
        return EventStream(llm.open_stream(asked), asked)
    answer = await llm.answer(asked, exchange_of(request.scope).held)
    return JSONResponse(answer.body[TRANSLATED], answer.call.headers)


@router.post("/v1/messages/count_tokens", **described(TokensRequest, TokenCount))
async def count_tokens(request: Request) -> Response:
    """Count the tokens of a request. The header `X-Counted-By` says who did: the provider, or an estimate."""
    llm = await get_llm(request)
    asked = await _asked(request, TokensRequest, llm)
    body, counted_by = await llm.count_tokens(asked)
    return JSONResponse(body, {"X-Counted-By": counted_by})


async def _asked(request: Request, kind: type[TokensRequest], llm: LLMClient) -> Messages:
    given = dict(reversed(request.scope["headers"]))  # of several with one name, the first
    versions = {name.decode(): given[name].decode("latin-1") for name in VERSIONS if name in given}
    return Messages(await read_body(request, kind, llm), versions)
