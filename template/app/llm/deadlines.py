"""The time limits of one call, each with an error of its own."""

import asyncio
from collections.abc import Callable

from app.config import Timeouts
from app.errors import ProviderTimeout


class Deadlines:
    """Keeps one call within its `timeouts`.

    The wait for a stream's next event starts when we begin to read it, so a slow client uses up none of that time.
    `total` runs from the moment the call is made.

    Args:
        timeouts: the settings, in seconds.
    """

    __slots__ = ("_end", "_limit", "_time", "deadline", "model", "timeouts")

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self._time = asyncio.get_running_loop().time
        self._end = self._time() + timeouts.total
        self.start_answer("")

    def start_answer(self, model: str) -> None:
        """Wait for a whole answer of `model` (its public name)."""
        self.model = model
        self.deadline, self._limit = self._end, "total"

    def start_stream(self, model: str) -> None:
        """Wait for the first event of a stream of `model`."""
        self.model = model
        self._wait_for("first_token", self.timeouts.first_token)

    def next_event(self) -> None:
        """Wait for a stream's next event, from now on."""
        self._wait_for("idle", self.timeouts.idle)

    def _wait_for(self, limit: str, seconds: float) -> None:
        self.deadline, self._limit = self._time() + seconds, limit
        if self.deadline >= self._end:
            self.deadline, self._limit = self._end, "total"

    def remaining(self) -> float:
        """Return the seconds that are left of `total`."""
        return self._end - self._time()

    @property
    def over(self) -> bool:
        """Whether `total` has passed. The event loop may fire a timer a few milliseconds early."""
        return self.remaining() < 0.01

    def limit(self) -> asyncio.Timeout:
        """Return the timeout for what is awaited now; it raises TimeoutError."""
        return asyncio.timeout_at(self.deadline)

    def expired(self) -> ProviderTimeout:
        """Return the error that says which limit has passed."""
        seconds = getattr(self.timeouts, self._limit)
        did = {
            "first_token": f"sent nothing within {seconds:g} s",
            "idle": f"sent nothing more for {seconds:g} s",
            "total": f"did not finish within {seconds:g} s",
        }[self._limit]
        return ProviderTimeout(f"Model {self.model!r} {did} (timeouts.{self._limit}).")


class Watchdog:
    """Ends a stream's read when nothing arrives before the deadline.

    One timer serves all reads of a stream: an `asyncio.timeout` around each costs more than the rest of a read.

    Args:
        deadlines: tells until when the next read may take.
        fail: makes the read that is waiting raise an error.
    """

    __slots__ = ("_deadlines", "_fail", "_loop", "_timer", "_timer_at", "_waiting")

    def __init__(self, deadlines: Deadlines, fail: Callable[[Exception], None]) -> None:
        self._deadlines = deadlines
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def wait(self) -> None:
        """Start watching a read."""
        self._waiting = True
        if self._deadlines.deadline < self._timer_at:
            self._set_timer()

    def pause(self) -> None:
        """Stop watching until the next read: time that passes now is not the provider's."""
        self._waiting = False

    def stop(self) -> None:
        """Stop watching for good."""
        if self._timer:
            self._timer.cancel()

    def _set_timer(self) -> None:
        self.stop()
        self._timer_at = self._deadlines.deadline
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_at = float("inf")
        if not self._waiting:
            return  # the next read sets the timer again
        if self._loop.time() < self._deadlines.deadline - 0.001:
            self._set_timer()
        else:
            self._fail(self._deadlines.expired())
