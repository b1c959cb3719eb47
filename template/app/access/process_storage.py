"""ProcessStorage: counts requests and tokens in this process's memory."""

import time
from collections import deque


class ProcessStorage:
    """Fixed and moving windows, with those methods of a storage of the library `limits` that Limiter uses.

    The library's own storage in memory switches to a thread at every request, and counts by the wall clock, whose jumps
    would free or lock out callers. Times here are seconds of `time.monotonic()`.
    """

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, int]] = {}
        self._entries: dict[str, deque[float]] = {}
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._counts) + len(self._entries)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to the count of a fixed window, which starts with its first use; return the count."""
        now = self._swept()
        end, count = self._counts.get(key, (0.0, 0))
        if end <= now:
            end, count = now + expiry, 0
        self._counts[key] = end, count + amount
        return count + amount

    async def get_expiry(self, key: str) -> float:
        """Return when a fixed window ends."""
        return self._counts[key][0]

    async def acquire_entry(self, key: str, limit: int, expiry: int) -> bool:
        """Add an entry to a moving window and return True, or return False if it is full."""
        now, entries = self._window(key, expiry)
        if len(entries) >= limit:
            return False
        entries.append(now)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return the time of the oldest entry in a moving window, or now if it is empty, and the number of entries."""
        now, entries = self._window(key, expiry)
        return entries[0] if entries else now, len(entries)

    def _window(self, key: str, expiry: int) -> tuple[float, deque[float]]:
        """Return the time, and the entries of a moving window that are not older than it is long."""
        now = self._swept()
        entries = self._entries.setdefault(key, deque())
        while entries and entries[0] <= now - expiry:
            entries.popleft()
        return now, entries

    def _swept(self) -> float:
        """Return the time. Once a minute, delete windows that have ended, since callers come and go."""
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + 60
            self._counts = {key: window for key, window in self._counts.items() if window[0] > now}
            self._entries = {
                key: entries for key, entries in self._entries.items() if entries and entries[-1] > now - 60
            }
        return now
