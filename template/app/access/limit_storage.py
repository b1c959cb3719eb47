"""LimitStorage: where limits are counted, and what is done while that fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from app.access.process_storage import ProcessStorage
from app.access.shared_storage import SharedStorage
from app.access.windows import Count, Window
from app.config import Settings
from app.errors import BudgetUnavailable, RateLimited
from app.telemetry.metrics import Metrics

STORAGE_TIMEOUT = 1.0
"""Seconds that a call's reservation, or its settlement, may take on a shared storage.

Much longer than a storage takes: a burst of requests keeps this process busy, and must not look like a storage that has
stalled, since then each process would count for itself and let too much in.
"""
STORAGE_CONNECTIONS = 64
"""Calls that use a shared storage at once, each on a connection of its own."""
STORAGE_PAUSE = 2.0
"""Seconds after a failure of a shared storage before one call tries it again."""

Storage = ProcessStorage | SharedStorage
Change = tuple[Window, int, float]
"""A window, what is added to it, and its end when it was reserved; 0 if that was in another storage."""
Reserved = Callable[[Storage, list[Window], int | None, list[Count]], None]
"""Takes what a storage has counted, in which windows, or which has too little room. It may raise RateLimited."""
Changes = Callable[[Storage], list[Change]]
Settled = Callable[[list[Change], list[int]], None]

T = TypeVar("T")

log = structlog.get_logger("app.limits")


class LimitStorage:
    """The storage that all processes share, or this process's own where there is none, and while that one fails.

    Args:
        settings: where the shared one is, and whether budgets are closed while it fails.
        metrics: shows whether it answers.

    Raises:
        SettingsError: its address can't work.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.degraded = False
        """Whether the shared storage fails, so that this process counts for itself."""
        self.own = ProcessStorage()
        self.shared: SharedStorage | None = None
        if settings.limit_storage != "async+memory://":
            self.shared = SharedStorage(settings.limit_storage, STORAGE_TIMEOUT)
        self._metrics = metrics
        self._closes = settings.budget_failure_mode == "closed"
        self._connections = asyncio.Semaphore(STORAGE_CONNECTIONS)
        self._retry_at = 0.0

    def reserve(self, windows: list[Window], reserved: Reserved) -> Awaitable[None] | None:
        """Count a call in all windows, or in none, if one has too little room.

        If this is cancelled, `reserved` is called nevertheless: else nobody would know what was counted.

        Args:
            windows: if there is money among them, and budgets are closed while the storage fails, nothing is counted.
            reserved: is told what was counted.

        Returns:
            What is to be awaited; None if it is done, since no storage is shared.

        Raises:
            BudgetUnavailable: the storage fails, and so nothing is counted.
            RateLimited: as `reserved` does.
        """
        if self.shared:
            return to_its_end(self._reserve_shared(self.shared, windows, reserved))
        reserved(self.own, windows, *self.own.reserve(windows))
        return None

    def settle(self, changes: Changes, settled: Settled) -> Awaitable[None] | None:
        """Correct what is counted; to the end, even if this is cancelled. It returns what `reserve` does.

        Args:
            changes: returns what is to be corrected in a storage.
            settled: is told what was corrected, and what is counted in each window now.
        """
        if self.shared:
            return to_its_end(self._settle_shared(self.shared, changes, settled))
        self._settle_own(changes, settled)
        return None

    async def _reserve_shared(self, shared: SharedStorage, windows: list[Window], reserved: Reserved) -> None:
        async def work() -> None:
            reserved(shared, windows, *await shared.reserve(windows))

        if await self._on_shared(work):
            return
        if self._closes and any(window.end for window in windows):
            message = "Budgets can't be read just now, and nothing is spent without them. Try again in a moment."
            raise BudgetUnavailable(message, retry_after=STORAGE_PAUSE)
        reserved(self.own, windows, *self.own.reserve(windows))

    async def _settle_shared(self, shared: SharedStorage, changes: Changes, settled: Settled) -> None:
        async def work() -> None:
            if due := changes(shared):
                settled(due, await shared.settle(due))

        if not await self._on_shared(work):
            self._settle_own(changes, settled)

    def _settle_own(self, changes: Changes, settled: Settled) -> None:
        if due := changes(self.own):
            settled(due, self.own.settle(due))

    async def _on_shared(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Return whether work on the shared storage could be done. It may raise RateLimited."""
        async with self._connections:
            if (now := time.monotonic()) < self._retry_at:
                return False
            probes = self.degraded
            if probes:
                self._retry_at = now + STORAGE_PAUSE
            try:
                async with asyncio.timeout(STORAGE_TIMEOUT):
                    await work()
            except RateLimited:
                self._answered(probes=probes)
                raise
            except Exception as error:
                self._failed(error)
                return False
            self._answered(probes=probes)
            return True

    def _failed(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + STORAGE_PAUSE
        if not self.degraded:
            self.degraded = True
            self._metrics.storage_up.set(0)
            budgets = "calls with a budget are refused" if self._closes else "each process counts for itself"
            log.error(
                "limit storage fails: each process counts for itself", error=type(error).__name__, budgets=budgets
            )

    def _answered(self, *, probes: bool) -> None:
        if probes:
            self.degraded = False
            self._retry_at = 0.0
            self._metrics.storage_up.set(1)
            log.info("limit storage is back")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Return what work returns. Whoever is cancelled meanwhile waits for its end, and is cancelled then."""
    task = asyncio.create_task(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    try:
        if cancelled:
            task.exception()  # seen, so not logged
            raise cancelled
        return task.result()
    finally:
        del task, cancelled  # with an exception's traceback, each would be a circle
