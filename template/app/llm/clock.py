"""The time limits of one call, each with its own error."""

import asyncio

from app.config import Timeouts
from app.errors import ProviderTimeout


class Clock:
    """Keeps one call within its `timeouts`.

    A stream's wait for its next event counts from when we begin to wait, so a slow client uses up none of it.
    `total` runs from the first attempt on.
    """

    __slots__ = ("_end", "_limit", "_next", "_time", "model", "timeouts")

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self._time = asyncio.get_running_loop().time
        self._end = self._time() + timeouts.total
        self.start_answer("")

    def start_answer(self, model: str) -> None:
        """Wait for a whole answer of `model` (its public name)."""
        self.model = model
        self._next, self._limit = self._end, "total"

    def start_stream(self, model: str) -> None:
        """Wait for the first event of a stream of `model`."""
        self.model = model
        self._next, self._limit = self._time() + self.timeouts.first_token, "first_token"

    def next_event(self) -> None:
        """Wait for a stream's next event, from now on."""
        self._next, self._limit = self._time() + self.timeouts.idle, "idle"

    def remaining(self) -> float:
        """Return the seconds that are left of `total`."""
        return self._end - self._time()

    @property
    def over(self) -> bool:
        """Whether `total` has passed. A loop may fire a timer some milliseconds early."""
        return self.remaining() < 0.01

    def limit(self) -> asyncio.Timeout:
        """Return the timeout for what is awaited now; it raises TimeoutError."""
        return asyncio.timeout_at(min(self._next, self._end))

    def expired(self) -> ProviderTimeout:
        """Return the error that says which limit has passed."""
        limit = self._limit if self._next < self._end else "total"
        seconds = getattr(self.timeouts, limit)
        did = {
            "first_token": f"sent nothing within {seconds:g} s",
            "idle": f"fell silent for {seconds:g} s",
            "total": f"did not finish within {seconds:g} s",
        }[limit]
        return ProviderTimeout(f"Model {self.model!r} {did} (timeouts.{limit}).")
