"""A circuit breaker for each model: a model that keeps failing is skipped for a while."""

import time
from collections.abc import Callable

FAILURES = 3
"""Failed calls in a row after which a model is skipped."""
SECONDS = 30.0
"""How long it is skipped; then one call tries it again."""
UNREACHED = object()
"""Stands among the callers whose calls have failed for a connection that could not be made."""


class CircuitBreakers:
    """Counts each model's failures in a row, and whose calls they were.

    A breaker is closed at first. After `FAILURES` failures in a row it opens: `SECONDS` long the model is skipped. If
    all of them were calls of one caller, whose requests may be at fault, it is skipped for that caller alone, unless no
    connection could be made. Then the breaker is half-open: exactly one call is let through to try the model; its
    success closes the breaker, its failure opens it again.

    Args:
        now: a monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failures: dict[str, int] = {}
        self._callers: dict[str, set[object]] = {}
        self._open_until: dict[str, float] = {}

    def lets_through(self, model: str, caller: str | None = None) -> bool:
        """Return whether a caller may try a model now. A half-open breaker lets one call through, and waits for it."""
        open_until = self._open_until.get(model)
        callers = self._callers.get(model, ())
        if open_until is None or (len(callers) == 1 and caller not in callers):
            return True
        if self._now() < open_until:
            return False
        self._open_until[model] = self._now() + SECONDS
        return True

    def failed(self, model: str, caller: str | None = None, *, unreached: bool = False) -> None:
        """Count a caller's failed call. If the model was `unreached`, that is nobody's fault, and concerns all."""
        self._failures[model] = self._failures.get(model, 0) + 1
        self._callers.setdefault(model, set()).update({caller, UNREACHED} if unreached else {caller})
        if self._failures[model] >= FAILURES:
            self._open_until[model] = self._now() + SECONDS

    def undecided(self, model: str) -> None:
        """A call ended without showing how the model is: a half-open breaker lets the next call through."""
        if model in self._open_until:
            self._open_until[model] = min(self._open_until[model], self._now())

    def succeeded(self, model: str) -> bool:
        """Close a model's breaker; return whether it was open."""
        self._failures.pop(model, None)
        self._callers.pop(model, None)
        return self._open_until.pop(model, None) is not None

    def is_open(self, model: str) -> bool:
        """Return whether a model's breaker is open or half-open."""
        return model in self._open_until
