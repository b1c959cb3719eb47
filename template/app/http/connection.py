"""What an Exchange may know of the connection that its request came by."""

from collections.abc import Callable
from typing import Protocol

from app.llm.timers import Timer


class Connection(Protocol):
    """What `ServerProtocol` tells of a connection. Other servers tell nothing: a task waits for the client to leave."""

    silence: Timer
    """A timer for the response that is being sent: for the pings of a silent stream."""

    def call_when_lost(self, callback: Callable[[], None] | None) -> None: ...
    def write(self, body: bytes) -> bool: ...
    async def until_sent(self) -> bool: ...
