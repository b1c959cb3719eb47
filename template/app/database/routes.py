"""Responses and conversations with state. Source: OpenAI's reference, Responses and Conversations."""

from contextlib import suppress
from typing import Annotated, Any, Literal, Protocol, cast

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.requests import HTTPConnection
from starlette.responses import Response

from app.database import jobs
from app.database.attempt import encoded
from app.database.background import Background
from app.database.conversations import Body, listed, prepared
from app.database.kept import Hold, Kept, StatefulRequest, Turn, keeping, resolve
from app.database.store import Store
from app.dependencies import CurrentCaller, get_llm, read_body
from app.dialects.response_objects import ResponseObject
from app.dialects.responses import Responses
from app.errors import AppError, InvalidRequest
from app.http.application import state_of
from app.http.bodies import LARGE
from app.http.event_stream import EventStream
from app.http.exchange import exchange_of
from app.http.json_response import JSONResponse
from app.http.openapi import ERRORS, described
from app.http.routing import BytesRoute
from app.llm.bridge import TRANSLATED
from app.llm.client import LLMClient
from app.llm.json_text import read_json
from app.llm.sse import DONE
from app.models import Wire
from app.routers.responses import websocket

router = APIRouter(tags=["responses"], responses=ERRORS)
ID = r"^[A-Za-z0-9_-]{1,256}$"
Id = Annotated[str, Field(pattern=ID)]


class Page(BaseModel):
    """Which page of a list."""

    limit: int = Field(default=20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: Id | None = None


class NewItems(Wire):
    """Items for a conversation."""

    items: Annotated[list[dict[str, Any]], Field(max_length=4096, fail_fast=True)]


class NewConversation(Wire):
    """A conversation."""

    items: Annotated[list[dict[str, Any]], Field(max_length=4096, fail_fast=True)] | None = None
    metadata: dict[str, Any] | None = None


class NewMetadata(Wire):
    """A conversation's metadata."""

    metadata: dict[str, Any]


class HasStore(Protocol):
    """What is needed here of a Service, which imports this module."""

    store: Store
    background: Background


def store_of(request: HTTPConnection) -> Store:
    """Return the store of the application that a request is for."""
    return cast(HasStore, state_of(request).database).store


def background_of(request: HTTPConnection) -> Background:
    """Return what makes the answers in the background of an application."""
    return cast(HasStore, state_of(request).database).background


async def create(request: Request) -> Response:
    """Answer in OpenAI's Responses API, and keep the answer unless `store` is false."""
    llm = await get_llm(request)
    asked = await read_body(request, StatefulRequest, llm)
    caller = exchange_of(request.scope).caller or ""
    store, is_known = store_of(request), caller != state_of(request).anonymous.name
    needs = asked.store is not False or asked.previous_response_id or asked.conversation or asked.background
    if not is_known or not (needs or _refers(asked)):
        return await _answer(request, llm, Responses(asked))
    store.engine.check()
    hold = Hold(store)
    exchange_of(request.scope).held.append(hold.close)
    try:
        return await _create(request, llm, asked, hold)
    except AppError:
        with suppress(AppError):
            await hold.leave()  # before its client may ask again
        raise


async def _create(request: Request, llm: LLMClient, asked: StatefulRequest, hold: Hold) -> Response:
    store, caller = store_of(request), exchange_of(request.scope).caller or ""
    turn = await resolve(store, caller, asked, hold)
    size = sum(len(to_json(item)) for item in turn.fields["input"]) if turn.fields["input"] is not asked.input else 0
    if size > LARGE:
        state_of(request).bodies.hold(exchange_of(request.scope), 2 * size)
    if asked.background:
        return await _begin(request, llm, turn)
    return await _answer(request, llm, Kept(turn.fields, turn.stamp()), (store, caller, turn))


async def _begin(request: Request, llm: LLMClient, turn: Turn) -> Response:
    """Store a request, and hand it to the queue; answer at once."""
    if not turn.is_stored:
        message = "background: an answer in the background is stored, so leave store: false out."
        raise InvalidRequest(message, param="store")
    store, background, caller = store_of(request), background_of(request), exchange_of(request.scope).caller or ""
    background.check()
    model = llm.candidates(turn.fields.get("model"))[0]
    kept = Kept(turn.fields | {"model": model}, turn.stamp() | {"background": True})
    body = kept.begun("queued") | {"model": model}
    fields = {name: value for name, value in turn.fields.items() if name not in ("input", "stream")} | {"model": model}
    place: Body = {"previous": turn.previous, "conversation": turn.conversation}
    _ = kept.fields  # what chat can't read is refused now, and not in the background
    begun = [{"type": f"response.{kind}", "response": body} for kind in ("created", "queued")] if kept.stream else []
    await store.add(caller, body, turn.given, begun, request=fields, is_streamed=kept.stream, **place)
    turn.hold.is_held = False
    with suppress(AppError):  # it is stored, so whoever looks after the jobs will hand it to the queue
        await background.submit(body["id"])
    if kept.stream:
        return EventStream(background.events(body["id"], -1), kept)
    return Response(to_json(body), media_type="application/json")


def _refers(asked: StatefulRequest) -> bool:
    return isinstance(asked.input, list) and any(item.get("type") == "item_reference" for item in asked.input)


async def _answer(
    request: Request, llm: LLMClient, asked: Responses, keep: tuple[Store, str, Turn] | None = None
) -> Response:
    async def save(body: Body | None) -> None:
        if not keep:
            return
        store, caller, turn = keep
        if body and (turn.is_stored or turn.conversation):
            place: Body = {"previous": turn.previous, "conversation": turn.conversation}
            await store.add(caller, body, turn.given, is_stored=turn.is_stored, **place)
            turn.hold.is_held = False
        else:
            with suppress(AppError):  # else it is left when the database answers again
                await turn.hold.leave()

    opening = llm.open_stream(asked)
    if asked.stream:
        return EventStream(keeping(opening, asked, save) if isinstance(asked, Kept) else opening, asked)
    answer = await llm.answer(asked, exchange_of(request.scope).held)
    body = answer.body[TRANSLATED]
    if isinstance(asked, Kept):
        body = (read_json(body) if isinstance(body, bytes) else body) | asked.stamp
        await save(body)
    return JSONResponse(body, answer.call.headers)


router.add_api_route(
    "/v1/responses",
    create,
    methods=["POST"],
    route_class_override=BytesRoute,
    **described(StatefulRequest, ResponseObject, stream=True),
)

router.add_api_route(
    "/v1/responses", websocket, methods=["GET"], include_in_schema=False, route_class_override=BytesRoute
)


@router.get("/v1/responses/{response_id}", response_model=None)
async def retrieve(
    request: Request,
    response_id: Id,
    caller: CurrentCaller,
    starting_after: Annotated[int, Query(ge=0)] | None = None,
    *,
    stream: bool = False,
) -> Body | Response:
    """Return a response; with `stream` the events of one in the background, from the one behind `starting_after` on."""
    row = await store_of(request).get(caller.name, response_id)
    if stream and not row.is_streamed:
        message = "stream: only what was asked for with background and stream can be streamed again."
        raise InvalidRequest(message, param="stream")
    if stream:
        after = -1 if starting_after is None else starting_after
        exchange_of(request.scope).cancel_on_disconnect()
        return EventStream(background_of(request).events(response_id, after), error=_failed)
    body: Body = row.body
    return body


def _failed(error: AppError, _: str) -> bytes:
    told = {"type": "error", "code": error.code, "message": error.message, "param": None, "sequence_number": 0}
    return encoded(told) + DONE


@router.post("/v1/responses/{response_id}/cancel")
async def cancel(request: Request, response_id: Id, caller: CurrentCaller) -> Body:
    """End an answer in the background; what is complete stays as it is."""
    store = store_of(request)
    row = await store.get(caller.name, response_id)
    if not row.body.get("background"):
        raise InvalidRequest("Only an answer in the background can be cancelled.", param="response_id")
    await jobs.cancel(store, caller.name, response_id)
    body: Body = (await store.get(caller.name, response_id)).body
    return body


@router.delete("/v1/responses/{response_id}")
async def delete(request: Request, response_id: Id, caller: CurrentCaller) -> Body:
    """Delete a response, with its items and events."""
    await store_of(request).delete(caller.name, response_id)
    with suppress(AppError):
        await background_of(request).delete([response_id])
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/v1/responses/{response_id}/input_items")
async def input_items(request: Request, response_id: Id, caller: CurrentCaller, page: Annotated[Page, Query()]) -> Body:
    """Return what a response's own request has added to the conversation."""
    return await store_of(request).input_items(caller.name, response_id, **page.model_dump())


@router.post("/v1/conversations")
async def create_conversation(request: Request, body: NewConversation, caller: CurrentCaller) -> Body:
    """Begin a conversation."""
    items = prepared(body.items or ())
    return await store_of(request).create_conversation(caller.name, body.metadata or {}, items)


@router.get("/v1/conversations/{conversation_id}")
async def retrieve_conversation(request: Request, conversation_id: Id, caller: CurrentCaller) -> Body:
    """Return a conversation."""
    return await store_of(request).conversation(caller.name, conversation_id)


@router.post("/v1/conversations/{conversation_id}")
async def update_conversation(request: Request, conversation_id: Id, body: NewMetadata, caller: CurrentCaller) -> Body:
    """Replace a conversation's metadata."""
    return await store_of(request).conversation(caller.name, conversation_id, body.metadata)


@router.delete("/v1/conversations/{conversation_id}")
async def delete_conversation(request: Request, conversation_id: Id, caller: CurrentCaller) -> Body:
    """Delete a conversation, with its items and its responses."""
    await store_of(request).delete_conversation(caller.name, conversation_id)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.post("/v1/conversations/{conversation_id}/items")
async def add_items(request: Request, conversation_id: Id, body: NewItems, caller: CurrentCaller) -> Body:
    """Put items into a conversation."""
    items = prepared(body.items)
    await store_of(request).add_items(caller.name, conversation_id, items)
    return listed(items)


@router.get("/v1/conversations/{conversation_id}/items")
async def conversation_items(
    request: Request, conversation_id: Id, caller: CurrentCaller, page: Annotated[Page, Query()]
) -> Body:
    """Return a page of a conversation's items."""
    return await store_of(request).conversation_page(caller.name, conversation_id, **page.model_dump())


@router.get("/v1/conversations/{conversation_id}/items/{item_id}")
async def conversation_item(request: Request, conversation_id: Id, item_id: Id, caller: CurrentCaller) -> Body:
    """Return an item of a conversation."""
    return await store_of(request).conversation_item(caller.name, conversation_id, item_id)


@router.delete("/v1/conversations/{conversation_id}/items/{item_id}")
async def delete_item(request: Request, conversation_id: Id, item_id: Id, caller: CurrentCaller) -> Body:
    """Delete an item of a conversation, and return the conversation."""
    return await store_of(request).conversation_item(caller.name, conversation_id, item_id, remove=True)
