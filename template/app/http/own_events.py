"""Your own events as server-sent events: one for each text, dict or Pydantic model of an iterator."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi.sse import ServerSentEvent, format_sse_event
from pydantic_core import to_json

from app.errors import AppError
from app.http.problems import error_event
from app.llm.sse import DONE


@dataclass(frozen=True, slots=True)
class OwnStream:
    """A stream of own events whose first one is there.

    Attributes:
        first: the first event.
        packets: those that follow, `[DONE]` last.
        headers: none: `EventStream` is given them.
    """

    first: bytes
    packets: AsyncGenerator[bytes, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    def ending(self) -> None:
        """Do nothing: there is no call."""


@asynccontextmanager
async def open_events(events: AsyncIterator[Any]) -> AsyncIterator[OwnStream]:
    """Open a stream of own events; entering returns when the first one is there, leaving closes the iterator.

    Args:
        events: as in `EventStream`.
    """
    async with closed_at_end(events), aclosing(_packets(events)) as packets:
        yield OwnStream(await anext(packets), packets)


@asynccontextmanager
async def closed_at_end(events: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Close an iterator at the end of the block, if it is a generator."""
    try:
        yield
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def _packets(events: AsyncIterator[Any]) -> AsyncGenerator[bytes, None]:
    async for event in events:
        yield encode(event)
    yield DONE


def encode(event: Any) -> bytes:
    """Return a server-sent event: JSON for a text, a dict or a Pydantic model; bytes are whole events already."""
    if isinstance(event, bytes):
        return event
    if isinstance(event, ServerSentEvent):
        data = event.raw_data if event.data is None else to_json(event.data).decode()
        return format_sse_event(data_str=data, event=event.event, id=event.id, retry=event.retry, comment=event.comment)
    return b"data: " + to_json(event) + b"\n\n"


def named_error_event(error: AppError, request_id: str) -> bytes:
    """Return the event `error`, which tells what `data:` of another event doesn't, and `[DONE]`."""
    return b"event: error\n" + error_event(error, request_id)
