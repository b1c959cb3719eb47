"""One attempt at an answer in the background."""

from typing import Any

import structlog
from pydantic_core import to_json

from app.access.callers import Caller
from app.config import JWT_NAMES
from app.database.conversations import Body
from app.database.engine import DatabaseUnavailable
from app.database.kept import Kept, input_of
from app.database.replay import Replay
from app.database.store import FINAL, Store
from app.errors import AppError, RateLimited, Unauthorized
from app.http.application import AppState
from app.llm.client import LLMClient
from app.llm.json_text import read_json
from app.llm.logged_calls import LoggedCalls
from app.llm.sse import Events, event_data
from app.telemetry.logs import exception_fields

MOST_INTERRUPTIONS = 10
"""Of one answer: a request that ends its process each time must not end it for ever."""

log = structlog.get_logger("app.background")


async def make(
    state: AppState,
    store: Store,
    row: Any,
    given: list[Body],
    replay: Replay,
    pending: list[tuple[int, Body]],
    number: int,
) -> Body | float:
    """Return the whole response, or the seconds after which the caller's limit admits it.

    Args:
        state: the application's.
        store: the tables.
        row: the stored response.
        given: the request's own items.
        replay: passes on what is new.
        pending: takes the events.
        number: the first one's number.
    """

    def tell(event: Body) -> None:
        for told in replay.take(event) if row.is_streamed else ():
            pending.append((number + len(taken), told))
            taken.append(told["type"])
            if "response" in told:
                whole.update(told["response"])

    taken: list[str] = []
    whole: Body = {}
    stamp = {name: row.body[name] for name in ("store", "previous_response_id", "conversation", "id", "created_at")}
    kept: Kept | None = None
    try:
        if row.interruptions >= MOST_INTERRUPTIONS:
            raise AppError("This answer has ended its process too often.", code="interrupted")
        fields = row.request | {"input": await input_of(store, row, given), "stream": True}
        kept = Kept(fields, stamp | {"background": True})
        llm = LLMClient(state.upstreams, _caller(state, row.caller), LoggedCalls(), prepaid={})
        async with llm.open_stream(kept) as stream:
            for event in _events(kept.stamped(stream.first)):
                tell(event)
            async for packet in stream.packets:
                for event in _events(kept.stamped(packet)):
                    tell(event)
        body = kept.outcome or {}
        if body.get("status") not in FINAL:
            raise AppError
    except DatabaseUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - whatever ends an answer, its client is told
        if isinstance(error, RateLimited) and error.retry_after is not None and not (kept and kept.outcome):
            return float(error.retry_after)
        if not isinstance(error, AppError):
            log.error("unexpected", response=row.id, **exception_fields(error))
        body = _failed(kept, row, error if isinstance(error, AppError) else AppError())
        tell({"type": "response.failed", "response": body})
    return body | whole


def _caller(state: AppState, name: str) -> Caller:
    """Return the caller who has asked, with today's limits.

    Raises:
        Unauthorized: there is none by that name any more.
    """
    settings, jwt = state.settings, state.settings.auth.jwt
    if found := state.keys.named(name):
        return found
    if jwt and name.startswith(JWT_NAMES):
        models = frozenset(jwt.models) if jwt.models is not None else None
        return Caller(name, models, jwt, label="jwt")
    if settings.dev:
        return Caller(name)
    raise Unauthorized("The caller who asked for this answer is not known here any more.")


def _failed(kept: Kept | None, row: Any, error: AppError) -> Body:
    told = {"code": error.code, "message": error.message}
    return (kept and kept.broken(error)) or row.body | {"status": "failed", "error": told, "output": []}


def encoded(event: Body) -> bytes:
    """Return an event as clients get it."""
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), to_json(event))


def _events(packet: bytes) -> list[Body]:
    """Return the events of a packet, without `[DONE]`."""
    found = (event_data(event) for event in Events().feed(packet))
    return [read_json(data) for data in found if data and data.strip() != b"[DONE]"]
