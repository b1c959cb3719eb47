"""Models that keep failing are left alone for a while."""

import time
from collections.abc import Callable

FAILURES = 3
"""Failed calls in a row after which a model is left alone."""
SECONDS = 30.0
"""How long; then one call tries it again."""


class Cooldowns:
    """Counts each model's failures in a row.

    Args:
        now: the clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def cooling(self, model: str) -> bool:
        """Return whether a model is to be skipped now.

        When its time is over, one caller hears no and becomes the probe; the others skip it until the probe is back.
        """
        until = self._until.get(model)
        if until is None:
            return False
        if self._now() < until:
            return True
        self._until[model] = self._now() + SECONDS
        return False

    def failed(self, model: str) -> None:
        """Count a failure."""
        self._failures[model] = self._failures.get(model, 0) + 1
        if self._failures[model] >= FAILURES:
            self._until[model] = self._now() + SECONDS

    def answered(self, model: str) -> bool:
        """Forget a model's failures; return whether it was being left alone."""
        self._failures.pop(model, None)
        return self._until.pop(model, None) is not None

    def active(self, model: str) -> bool:
        """Return whether a model is cooling down, for metrics."""
        return model in self._until
