"""A request that needs what is kept, turned into one that needs nothing; and its answer, kept before it ends."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from app.database.conversations import Body, new_id, prepared
from app.database.engine import CHECK_EVERY, DatabaseUnavailable
from app.database.store import FINAL, Store
from app.dialects.response_events import ResponseEvents
from app.dialects.responses import Responses, ResponsesRequest
from app.errors import AppError, InvalidRequest
from app.llm.call import OpenStream
from app.llm.json_text import read_json
from app.llm.sse import Events, event_data

SEALED = "reasoning.encrypted_content"
STATE = ("store", "background", "previous_response_id", "conversation")
"""Fields that are answered here, and that no model's provider gets."""
HAS_RESPONSE = re.compile(rb'"response"\s*:\s*\{')


class StatefulRequest(ResponsesRequest):
    """A request for a response, which may be stored, and may go on from what is stored."""

    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None


class Hold:
    """A request's right to be the only one that is answered in its conversation. Without one, nothing is held.

    Args:
        store: the tables.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._conversation, self._turn = store, "", new_id("turn")
        self.is_held = False

    async def take(self, caller: str, conversation: str) -> None:
        """Take it; errors as in `Store.begin`."""
        self._conversation = conversation
        self.is_held = True  # before it is known: a client that leaves now may have it or not
        await self._store.begin(caller, conversation, self._turn)

    async def leave(self) -> None:
        """Give it back, if `Store.add` has not done so; raise DatabaseUnavailable if that isn't possible now."""
        if self.is_held:
            await self._store.end(self._conversation, self._turn)
            self.is_held = False

    def close(self) -> None:
        """Give it back as soon as possible: the request has ended."""
        if self.is_held:
            task = asyncio.create_task(self._leave_at_last())
            _leaving.add(task)
            task.add_done_callback(_leaving.discard)

    async def _leave_at_last(self) -> None:
        while self.is_held:
            try:
                await self.leave()
            except DatabaseUnavailable:
                await asyncio.sleep(CHECK_EVERY)


_leaving: set[asyncio.Task[None]] = set()


@dataclass
class Turn:
    """What a request adds to what is kept.

    Attributes:
        given: its own items.
        fields: the request without state: all items, and what else it sets.
        previous: the response that it goes on from.
        conversation: the conversation that it belongs to.
        is_stored: whether the response is kept.
        hold: that of its conversation.
    """

    given: list[Body]
    fields: Body
    previous: str | None
    conversation: str | None
    is_stored: bool
    hold: Hold

    def stamp(self) -> Body:
        """Return what a response says about where it is kept. Its id is ours: not every upstream's can be relied on."""
        conversation = {"id": self.conversation} if self.conversation else None
        place = {"store": self.is_stored, "previous_response_id": self.previous, "conversation": conversation}
        return {"id": new_id("resp"), **place}


async def resolve(store: Store, caller: str, asked: StatefulRequest, hold: Hold) -> Turn:
    """Return a request's turn, with all that was said before.

    Args:
        store: the tables.
        caller: whose request it is.
        asked: the request.
        hold: takes its conversation.

    Raises:
        NotFound, InvalidRequest: as in `Store.history`.
        ConversationLocked: its conversation is held by another request.
    """
    fields = {name: value for name, value in asked.model_dump(exclude_unset=True).items() if name not in STATE}
    previous, named = asked.previous_response_id, asked.conversation
    conversation = named.get("id") if isinstance(named, dict) else named
    if named and not isinstance(conversation, str):
        raise InvalidRequest("conversation: give its id.", param="conversation")
    if previous and conversation:
        raise InvalidRequest("Give previous_response_id or conversation, not both.", param="conversation")
    given = asked.input
    items = [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given
    if ids := [str(item["id"]) for item in items if item.get("type") == "item_reference" and item.get("id")]:
        found = await store.items(caller, ids)
        items = [
            found.get(str(item.get("id")), item) if item.get("type") == "item_reference" else item for item in items
        ]
    if conversation:
        await hold.take(caller, conversation)
    history = await _history(store, caller, previous, conversation)
    if history or ids:
        fields["input"] = [*history, *items]
    return Turn(prepared(items), fields, previous, conversation, asked.store is not False, hold)


async def input_of(store: Store, row: Any, given: list[Body]) -> list[Body]:
    """Return a stored response's whole input; a conversation has its own items already. Errors as in `resolve`."""
    history = await _history(store, row.caller, row.previous, row.conversation)
    return history if row.conversation else [*history, *given]


async def _history(store: Store, caller: str, previous: str | None, conversation: str | None) -> list[Body]:
    history: list[Body] = []
    if previous:
        history = await store.history(caller, previous)
    elif conversation:
        history = await store.conversation_items(caller, conversation)
    return list(filter(_is_whole, history))


def _is_whole(item: Body) -> bool:
    """Return whether an item can be said again: a call of a tool that broke off can't."""
    return item.get("status") in ("completed", None) or item.get("type") == "message"


class Kept(Responses):
    """Translates a request whose state is resolved, and tells in the answer where it is kept.

    Args:
        fields: the request, without state.
        stamp: what the response says of itself beyond that: `store`, `previous_response_id`, `id`, ...
    """

    def __init__(self, fields: Body, stamp: Body) -> None:
        self.stamp = stamp
        super().__init__(ResponsesRequest.model_construct(_fields_set=set(fields), **fields))
        self._included: list[str] = self.sent.get("include") or []
        # Kept reasoning goes back to its model in the next turn, whether the client wants it or not.
        self.sent["include"] = [*self._included, SEALED]

    @property
    def outcome(self) -> Body | None:
        """The response so far; None before it has begun."""
        begun: ResponseEvents | None = self._begun
        if begun is not None:
            return begun.whole
        return self._seen | self.stamp if self._seen else None

    def begun(self, status: str) -> Body:
        """Return the response object before there is an answer."""
        stream: ResponseEvents = self._stream
        return stream.whole | {"status": status}

    def _skeleton(self) -> Body:
        return super()._skeleton() | self.stamp

    def native(self, defaults: Body) -> Body:
        """Return the request for an upstream that speaks the dialect, which is to keep nothing."""
        fields = super().native(defaults)
        thinks = "reasoning" in fields and SEALED not in self._included
        fields["include"] = [*self._included, SEALED] if thinks else self._included
        if isinstance(fields["input"], list):
            fields["input"] = [_as_sent(item) for item in fields["input"] if not _is_unsealed(item)]
        return {name: value for name, value in fields.items() if name != "include" or value} | {"store": False}

    def stamped(self, packet: bytes) -> bytes:
        """Return whole events, in which a response that an upstream has made itself says where it is kept."""
        if self._begun is not None or not HAS_RESPONSE.search(packet):
            return packet
        return b"".join(map(self._stamp, Events().feed(packet)))

    def _stamp(self, event: bytes) -> bytes:
        data = event_data(event) if HAS_RESPONSE.search(event) else None
        if not data:
            return event
        told = read_json(data)
        told["response"] |= self.stamp
        return b"event: %b\ndata: %b\n\n" % (str(told["type"]).encode(), to_json(told))

    def failed(self, error: AppError, request_id: str) -> bytes:
        """Return the events that end a stream which has begun and has failed."""
        if self._seen:
            self._seen |= self.stamp
        return super().failed(error, request_id)

    def broken(self, error: BaseException) -> Body | None:
        """Return the response as it is when something has ended it early; None if it had not begun."""
        begun: ResponseEvents | None = self._begun
        if begun is not None:
            begun.break_off()
        body = self.outcome
        if body is None:
            return None
        known = error if isinstance(error, AppError) else AppError()
        told = {"code": known.code, "message": known.message}
        is_error = isinstance(error, Exception)
        return body | {
            "status": "failed" if is_error else "cancelled",
            "error": told if is_error else None,
        }


def _as_sent(item: Body) -> Body:
    """Return an item without the id that an upstream which keeps nothing would look for."""
    return {name: value for name, value in item.items() if name != "id" or item.get("type") == "reasoning"}


def _is_unsealed(item: Body) -> bool:
    return item.get("type") == "reasoning" and not item.get("encrypted_content")


@asynccontextmanager
async def keeping(
    opening: AbstractAsyncContextManager[OpenStream], kept: Kept, save: Callable[[Body | None], Awaitable[None]]
) -> AsyncIterator[OpenStream]:
    """Open a stream whose response is saved before its last event is passed on, or when it has broken off.

    Args:
        opening: what `LLMClient.open_stream` returns.
        kept: its translator.
        save: takes the response; None if it broke off before it had begun.
    """
    is_saved = False

    async def passed(packet: bytes) -> bytes:
        nonlocal is_saved
        packet = kept.stamped(packet)
        body = kept.outcome
        if not is_saved and body and body["status"] in FINAL:
            is_saved = True
            await save(body)
        return packet

    async def all_of(stream: OpenStream) -> AsyncGenerator[bytes, Any]:
        yield await passed(stream.first)
        async for packet in stream.packets:
            yield await passed(packet)

    try:
        async with opening as stream, aclosing(all_of(stream)) as packets:
            yield OpenStream(stream.call, await anext(packets), packets)
    except BaseException as error:
        if not is_saved:
            await asyncio.shield(save(kept.broken(error)))
        raise
