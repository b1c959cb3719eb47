"""Where requests and tokens are counted when nothing is shared: in this process."""

import time
from collections import deque


class ProcessStorage:
    """Fixed and moving windows in memory, by the calls that `limits` has for a Valkey.

    The library's own storage in memory hops to a thread at every request.
    """

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, int]] = {}
        self._entries: dict[str, deque[float]] = {}
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._counts) + len(self._entries)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to a fixed window's count, which begins with its first use; return the count."""
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
        """Enter a moving window, if there is room."""
        now = self._swept()
        entries = self._entries.setdefault(key, deque())
        while entries and entries[0] <= now - expiry:
            entries.popleft()
        if len(entries) >= limit:
            return False
        entries.append(now)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return when the oldest entry of a window came, and how many there are."""
        entries = self._entries[key]
        return entries[0], len(entries)

    def _swept(self) -> float:
        """Return the time; once a minute, forget what nobody counts any more, since callers come and go."""
        now = time.time()
        if now >= self._sweep_at:
            self._sweep_at = now + 60
            self._counts = {key: window for key, window in self._counts.items() if window[0] > now}
            self._entries = {key: entries for key, entries in self._entries.items() if entries[-1] > now - 60}
        return now
