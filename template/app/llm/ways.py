"""What every way to a model offers."""

from collections.abc import AsyncGenerator
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
