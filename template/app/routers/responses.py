"""POST /v1/responses: OpenAI's Responses API, on every model."""

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

from app.dependencies import get_llm, read_body
from app.dialects.references import REFERRING
from app.dialects.response_objects import ResponseObject
from app.dialects.responses import Responses, ResponsesRequest
from app.http.event_stream import EventStream
from app.http.exchange import exchange_of
from app.http.json_response import JSONResponse
from app.http.openapi import described
from app.http.routing import BytesRoute
from app.llm.bridge import TRANSLATED

router = APIRouter(tags=["responses"], route_class=BytesRoute)


@router.post("/v1/responses", **described(ResponsesRequest, ResponseObject, stream=True))
async def responses(request: Request) -> Response:
    """Answer in OpenAI's Responses API: the whole response, or with `stream` its events. Nothing is stored."""
    llm, exchange = await get_llm(request), exchange_of(request.scope)
    refers = REFERRING in exchange.headers.get(b"user-agent", b"")
    asked = Responses(await read_body(request, ResponsesRequest, llm), refers=refers)
    if asked.stream:
        return EventStream(llm.open_stream(asked), asked)
    answer = await llm.answer(asked, exchange.held)
    return JSONResponse(answer.body[TRANSLATED], answer.call.headers)


@router.get("/v1/responses", include_in_schema=False)
async def websocket(request: Request) -> Response:
    """Refuse a WebSocket, so that its client takes HTTP at once."""
    if request.headers.get("upgrade", "").lower() == "websocket":
        raise HTTPException(426, "There is no WebSocket here. Use POST.", headers={"Upgrade": "HTTP/1.1"})
    raise HTTPException(405, headers={"Allow": "POST"})
