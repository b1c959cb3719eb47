"""The time limits of one call, each with an error of its own."""

import asyncio

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
