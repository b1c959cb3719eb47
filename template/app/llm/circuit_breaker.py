"""A circuit breaker for each model: a model that keeps failing is skipped for a while."""

import time
from collections import Counter
from collections.abc import Callable

FAILURES = 3
"""Failed calls in a row after which a model is skipped."""
SECONDS = 30.0
"""How long it is skipped; then one call tries it again."""
OTHERS_FAILURES = 2
"""Failed calls, besides those of the caller with the most, that show that the model is at fault and no request."""
UNREACHED = object()
"""Stands for the caller of calls that have failed for a connection that could not be made: that is nobody's fault."""


class CircuitBreakers:
    """Counts each model's failures in a row, and whose calls they were.

    A breaker is closed at first. After `FAILURES` failures in a row it opens: `SECONDS` long the model is skipped. A
    caller's requests may be at fault. So it is skipped for the caller with the most failures alone, while there are
    fewer than `OTHERS_FAILURES` besides; those for which no connection could be made always count. Then the breaker is
    half-open: exactly one call, the probe, is let through to try the model; its success closes the breaker, its failure
    opens it again.

    Args:
        now: a monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failures: dict[str, Counter[object]] = {}
        self._open_until: dict[str, float] = {}
        self._probes: dict[str, object] = {}

    def lets_through(self, model: str, caller: str | None = None, call: object = None) -> bool:
        """Return whether a caller's call may try a model now. A half-open breaker lets one through, and waits for it.

        Args:
            model: public name of the model.
            caller: the caller's name; None is the application itself.
            call: what `undecided` knows the probe by.
        """
        open_until = self._open_until.get(model)
        if open_until is None or not self._concerns(model, caller):
            return True
        if self._now() < open_until:
            return False
        self._open_until[model] = self._now() + SECONDS
        self._probes[model] = call
        return True

    def _concerns(self, model: str, caller: str | None) -> bool:
        """Return whether a model's failures keep a caller away: they are enough, and not another caller's alone."""
        failures = self._failures[model]
        if failures[caller] >= FAILURES or len(failures) > OTHERS_FAILURES:
            return True
        most = max((count for name, count in failures.items() if name is not UNREACHED), default=0)
        return failures.total() >= FAILURES and failures.total() - most >= OTHERS_FAILURES

    def failed(self, model: str, caller: str | None = None, *, unreached: bool = False) -> None:
        """Count a caller's failed call. If the model was `unreached`, that is nobody's fault."""
        self._failures.setdefault(model, Counter())[UNREACHED if unreached else caller] += 1
        if self._concerns(model, caller):
            self._open_until[model] = self._now() + SECONDS
            self._probes.pop(model, None)

    def undecided(self, model: str, call: object = None) -> None:
        """A call ended without showing how the model is: if it was the probe, the next call is let through."""
        if model in self._probes and self._probes[model] is call:
            del self._probes[model]
            self._open_until[model] = self._now()

    def succeeded(self, model: str) -> bool:
        """Close a model's breaker; return whether it was open."""
        self._failures.pop(model, None)
        self._probes.pop(model, None)
        return self._open_until.pop(model, None) is not None

    def is_open(self, model: str) -> bool:
        """Return whether a model's breaker is open or half-open."""
        return model in self._open_until
