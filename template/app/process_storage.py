"""Where `limits` counts when nothing is shared: in this process."""

import time
from collections import defaultdict, deque

from limits.aio.storage import MovingWindowSupport, Storage


class ProcessStorage(Storage, MovingWindowSupport):
    """Fixed and moving windows in memory. The library's own hops to a thread at every request."""

    STORAGE_SCHEME = None

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, tuple[float, int]] = {}
        self._entries: defaultdict[str, deque[float]] = defaultdict(deque)

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        end, count = self._counts.get(key, (0.0, 0))
        now = time.time()
        if end <= now:
            end, count = now + expiry, 0
        self._counts[key] = end, count + amount
        return count + amount

    async def get(self, key: str) -> int:
        end, count = self._counts.get(key, (0.0, 0))
        return count if end > time.time() else 0

    async def get_expiry(self, key: str) -> float:
        return self._counts.get(key, (time.time(), 0))[0]

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        entries, now = self._entries[key], time.time()
        while entries and entries[0] <= now - expiry:
            entries.popleft()
        if len(entries) + amount > limit:
            return False
        entries.extend([now] * amount)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        entries = self._entries[key]
        return (entries[0], len(entries)) if entries else (time.time(), 0)

    async def check(self) -> bool:
        return True

    async def clear(self, key: str) -> None:
        self._counts.pop(key, None)
        self._entries.pop(key, None)

    async def reset(self) -> int | None:
        size = len(self._counts) + len(self._entries)
        self._counts.clear()
        self._entries.clear()
        return size
