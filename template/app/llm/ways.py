"""What every way to a model offers, and what an answer is on its way out."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

from app.llm.clock import Clock
from app.llm.relay import StreamWatch
from app.llm.targets import Target


class Way(Protocol):
    """How models are reached. `app.llm.direct` says what the methods take and raise."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def complete(self, target: Target, fields: dict[str, Any], clock: Clock) -> dict[str, Any]: ...
    async def embed(self, target: Target, fields: dict[str, Any], clock: Clock) -> dict[str, Any]: ...
    def stream(
        self, target: Target, fields: dict[str, Any], clock: Clock, watch: StreamWatch
    ) -> AsyncGenerator[bytes, None]: ...


@dataclass(slots=True)
class Answer:
    """An answer to be sent as it is.

    Attributes:
        body: a JSON body in one item, or a stream's events. Nothing happens before its first item is asked for.
        headers: complete when the first item is there.
        streams: whether the body is a stream of server-sent events.
    """

    body: AsyncGenerator[bytes, None]
    headers: dict[str, str]
    streams: bool
