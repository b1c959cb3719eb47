"""Graceful shutdown.

After SIGTERM, SIGINT or SIGHUP the socket stays open: new requests get 503 `draining`, and open ones may finish. When
nothing is in flight any more, or when `shutdown_grace` is over and the rest has been ended with an error, the server's
own handler is called.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from app.errors import Draining
from app.http.exchange import Exchange
from app.http.signals import end_signals

AFTER_EXIT = 1.6
"""Seconds after which the server is told a second time to exit.

Aborted requests send their error meanwhile. The server alone would wait for ever for a client that has stopped reading.
"""


class Drain:
    """Knows which requests are in flight, and ends them at shutdown.

    Args:
        grace: seconds that requests in flight get to finish.

    Attributes:
        draining: whether the server is shutting down.
        in_flight: those requests. Who adds one calls `leave` when it has ended.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.draining = False
        self.in_flight: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._previous: dict[int, Any] = {}
        self._task: asyncio.Task[None] | None = None

    def leave(self, request: Exchange) -> None:
        """A request has ended."""
        self.in_flight.discard(request)
        if self.draining and not self.in_flight:
            self._idle.set()

    def error(self) -> Draining:
        """Return the error for new requests."""
        message = "This server is shutting down. Try again: another one will answer."
        return Draining(message, retry_after=1, headers={"Connection": "close"})

    def install(self) -> None:
        """Replace the server's signal handlers; they are called later. Outside the main thread there are none."""
        loop = asyncio.get_running_loop()
        on_sigterm = signal.getsignal(signal.SIGTERM)
        for number in end_signals():
            previous = signal.getsignal(number)
            try:
                # uvicorn alone leaves SIGHUP to the system, which would end the process at once
                signal.signal(number, self._on_signal(loop, previous if callable(previous) else on_sigterm))
            except ValueError:
                return
            self._previous[number] = previous

    def uninstall(self) -> None:
        """Put the server's signal handlers back."""
        if self._task:
            self._task.cancel()
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _on_signal(self, loop: asyncio.AbstractEventLoop, previous: Any) -> Callable[[int, FrameType | None], None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.draining and number == signal.SIGINT:
                previous(number, frame)  # a second Ctrl-C: exit at once
            elif not self.draining:
                self.draining = True
                loop.call_soon_threadsafe(self._begin, number, previous)

        return on_signal

    def _begin(self, number: int, previous: Any) -> None:
        self._task = asyncio.create_task(self._drain(number, previous))

    async def _drain(self, number: int, previous: Any) -> None:
        if self.in_flight:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.grace):
                    await self._idle.wait()
        for request in list(self.in_flight):
            request.abort(self.error())
        previous(number, None)
        await asyncio.sleep(AFTER_EXIT)
        previous(signal.SIGINT, None)  # told twice, the server exits at once
