"""The end of the service, in good order.

On SIGTERM or SIGINT the socket stays open: new work is told to go elsewhere, open streams finish. When nothing is in
flight, or the grace is over and what is left has had its error, the server's own handler is called.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from app.errors import Draining

AFTER_EXIT = 1.6
"""Seconds for what was aborted to send its last words, and for the server to end by itself.

It would wait for ever for a client that has stopped reading.
"""


class Abortable(Protocol):
    """A request in flight."""

    def abort(self, error: Draining) -> None: ...


class Drain:
    """Knows what is in flight, and ends it.

    Args:
        grace: seconds that what is in flight gets to finish.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.draining = False
        self._in_flight: set[Abortable] = set()
        self._idle = asyncio.Event()
        self._previous: dict[int, Any] = {}
        self._task: asyncio.Task[None] | None = None

    def enter(self, request: Abortable) -> None:
        """Count a request in."""
        self._in_flight.add(request)

    def leave(self, request: Abortable) -> None:
        """Count a request out."""
        self._in_flight.discard(request)
        if self.draining and not self._in_flight:
            self._idle.set()

    def error(self) -> Draining:
        """Return the error for new work."""
        message = "This server is shutting down. Try again: another one will answer."
        return Draining(message, retry_after=1, headers={"Connection": "close"})

    def install(self) -> None:
        """Put ourselves before the server's signal handlers. Needs the main thread; elsewhere nobody gets signals."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)
            try:
                signal.signal(number, self._on_signal(loop, previous))
            except ValueError:
                return
            self._previous[number] = previous

    def uninstall(self) -> None:
        """Give the signals back."""
        if self._task:
            self._task.cancel()
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _on_signal(self, loop: asyncio.AbstractEventLoop, previous: Any) -> Callable[[int, FrameType | None], None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.draining and number == signal.SIGINT:
                previous(number, frame)  # asked twice: at once
            elif not self.draining:
                self.draining = True
                loop.call_soon_threadsafe(self._begin, number, previous)

        return on_signal

    def _begin(self, number: int, previous: Any) -> None:
        self._task = asyncio.create_task(self._drain(number, previous))

    async def _drain(self, number: int, previous: Any) -> None:
        if self._in_flight:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.grace):
                    await self._idle.wait()
        for request in list(self._in_flight):
            request.abort(self.error())
        previous(number, None)
        await asyncio.sleep(AFTER_EXIT)
        previous(signal.SIGINT, None)  # asked twice: at once
