"""ProcessStorage: counts in this process's memory."""

import time
from collections import defaultdict, deque
from collections.abc import Sequence

from app.access.windows import MINUTE, Count, Window


class ProcessStorage:
    """Counts as SharedStorage does.

    Minutes are those of `time.monotonic()`: the wall clock's jumps would free or lock out callers.
    """

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, int]] = {}
        self._entries: defaultdict[str, deque[float]] = defaultdict(deque)
        self._sweep_at = 0.0

    def reserve(self, windows: Sequence[Window]) -> tuple[int | None, list[Count]]:
        """Count a call in all windows, or in none, if one has too little room.

        Returns:
            The index of the first window that has too little room, or None; and what was counted in each before.
        """
        now = self._swept()
        counts: list[Count] = []
        refused: int | None = None
        for window in windows:
            count = self._count(window, now)
            if refused is None and count[0] + window.amount > window.limit:
                refused = len(counts)
            counts.append(count)
        if refused is None:
            for window, (before, _, end) in zip(windows, counts, strict=True):
                if window.unit == "requests":
                    self._entries[window.key].append(now)
                else:
                    self._counts[window.key] = end, before + window.amount
        return refused, counts

    def settle(self, changes: Sequence[tuple[Window, int, float]]) -> list[int]:
        """Add to windows what calls took more than was counted, or take off what they took less.

        Args:
            changes: windows, how much is added, and the end in their Count when they were reserved; 0 if that was in
                another storage. From a window that has ended since, nothing is taken off.

        Returns:
            What is counted in each now.
        """
        now = self._swept()
        left = []
        for window, change, end in changes:
            before, _, runs_until = self._count(window, now)
            total = before + (change if change > 0 or runs_until == end else 0)
            self._counts[window.key] = runs_until, total
            left.append(total)
        return left

    def _count(self, window: Window, now: float) -> Count:
        if window.unit == "requests":
            entries = self._entries[window.key]
            while entries and entries[0] <= now - MINUTE:
                entries.popleft()
            return len(entries), (entries[0] if entries else now) + MINUTE - now, 0
        end, count = self._counts.get(window.key, (0.0, 0))
        if end <= now:
            end, count = now + (window.end - time.time() if window.end else MINUTE), 0
        return count, end - now, end

    def _swept(self) -> float:
        """Return the time. Once a minute, delete windows that have ended, since callers come and go."""
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + MINUTE
            self._counts = {key: window for key, window in self._counts.items() if window[0] > now}
            kept = {key: entries for key, entries in self._entries.items() if entries and entries[-1] > now - MINUTE}
            self._entries = defaultdict(deque, kept)
        return now
