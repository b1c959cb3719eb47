"""Timer: a time limit that moves with every request."""

import asyncio
from collections.abc import Callable


class Timer:
    """Calls a function at a time that may be moved as often as one likes: few moves touch the event loop.

    Setting and cancelling a timer of the loop for each request takes a twentieth of a whole request's time. This one
    leaves it as it is when the limit moves to later, and looks, when it fires, how much is left.

    Args:
        loop: the event loop.
        call: what is called; None calls nothing yet.

    Attributes:
        call: as above. Who uses a timer for a while sets it, and takes it away: it refers to what it is a method of.
    """

    __slots__ = ("_at", "_handle", "_handle_at", "_loop", "call")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None] | None = None) -> None:
        self._loop = loop
        self.call = call
        self._at = self._handle_at = float("inf")
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether the function is going to be called."""
        return self._at < float("inf")

    def set(self, at: float) -> None:
        """Call the function at a time of the event loop's clock, and no longer at the one that was set before."""
        self._at = at
        if at < self._handle_at:
            self._begin()

    def start(self, seconds: float) -> None:
        """Call the function in so many seconds."""
        self.set(self._loop.time() + seconds)

    def stop(self) -> None:
        """Do not call the function."""
        self._at = float("inf")

    def close(self) -> None:
        """Do not call the function, and leave nothing behind in the event loop."""
        self._at = self._handle_at = float("inf")
        if self._handle:
            self._handle.cancel()
            self._handle = None

    def _begin(self) -> None:
        if self._handle:
            self._handle.cancel()
        self._handle_at = self._at
        self._handle = self._loop.call_at(self._at, self._fire)

    def _fire(self) -> None:
        self._handle, self._handle_at = None, float("inf")
        if self._at - self._loop.time() > 0.001:  # the event loop may fire a little early
            if self.is_set:
                self._begin()
        else:
            self._at = float("inf")
            if self.call:
                self.call()
