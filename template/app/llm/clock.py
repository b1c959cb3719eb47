"""The time limits of one call, each with its own error."""

import asyncio
from collections.abc import Callable

from app.config import Timeouts
from app.errors import ProviderTimeout


class Clock:
    """Keeps one call within its `timeouts`.

    A stream's wait for its next event counts from when we begin to wait, so a slow client uses up none of it.
    `total` runs from the first attempt on.
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
        """Whether `total` has passed. A loop may fire a timer some milliseconds early."""
        return self.remaining() < 0.01

    def limit(self) -> asyncio.Timeout:
        """Return the timeout for what is awaited now; it raises TimeoutError."""
        return asyncio.timeout_at(self.deadline)

    def expired(self) -> ProviderTimeout:
        """Return the error that says which limit has passed."""
        seconds = getattr(self.timeouts, self._limit)
        did = {
            "first_token": f"sent nothing within {seconds:g} s",
            "idle": f"fell silent for {seconds:g} s",
            "total": f"did not finish within {seconds:g} s",
        }[self._limit]
        return ProviderTimeout(f"Model {self.model!r} {did} (timeouts.{self._limit}).")


class Watchdog:
    """Fails a stream's read when what its clock waits for doesn't come in time.

    One timer for all of a stream's reads: an `asyncio.timeout` around each costs more than all else that a read takes.

    Args:
        clock: tells the deadline.
        fail: makes the read that is waiting raise an error.
    """

    __slots__ = ("_clock", "_fail", "_loop", "_timer", "_timer_at", "_waiting")

    def __init__(self, clock: Clock, fail: Callable[[Exception], None]) -> None:
        self._clock = clock
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def wait(self) -> None:
        """Watch a read that begins now."""
        self._waiting = True
        if self._clock.deadline < self._timer_at:
            self._set_timer()

    def rest(self) -> None:
        """Watch nothing until the next read: what takes time now isn't the provider."""
        self._waiting = False

    def stop(self) -> None:
        """Watch no more."""
        if self._timer:
            self._timer.cancel()

    def _set_timer(self) -> None:
        self.stop()
        self._timer_at = self._clock.deadline
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_at = float("inf")
        if not self._waiting:
            return  # the next read sets it again
        if self._loop.time() < self._clock.deadline - 0.001:
            self._set_timer()
        else:
            self._fail(self._clock.expired())
