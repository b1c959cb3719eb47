"""LimitStorage: where limits are counted, and what is done while that fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from app.access.process_storage import ProcessStorage
from app.access.shared_storage import SharedStorage
from app.access.windows import Window
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
Work = Callable[[Storage], Awaitable[None]]

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
        self.shared: Storage | None = None
        if settings.limit_storage != "async+memory://":
            self.shared = SharedStorage(settings.limit_storage, STORAGE_TIMEOUT)
        self._metrics = metrics
        self._closes = settings.budget_failure_mode == "closed"
        self._connections = asyncio.Semaphore(STORAGE_CONNECTIONS)
        self._retry_at = 0.0

    async def use(self, work: Work, windows: Sequence[Window] = ()) -> None:
        """Do a call's work on the shared storage, or, while that fails, on this process's own.

        If this is cancelled, the work is done to its end nevertheless: else nobody would know what was reserved.

        Args:
            work: reserves or settles; may raise RateLimited.
            windows: what is reserved. If there is money among it, and budgets are closed while the storage fails, the
                work is not done.

        Raises:
            BudgetUnavailable: the storage fails, and so the work is not done.
        """
        if self.shared is None:
            await work(self.own)
            return
        doing = asyncio.create_task(self._on_shared(self.shared, work, windows))
        try:
            await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.wait([doing])
            if not doing.cancelled():
                doing.exception()  # has been seen
            raise

    async def _on_shared(self, shared: Storage, work: Work, windows: Sequence[Window]) -> None:
        async with self._connections:
            if (now := time.monotonic()) >= self._retry_at:
                probes = self.degraded
                if probes:
                    self._retry_at = now + STORAGE_PAUSE
                try:
                    async with asyncio.timeout(STORAGE_TIMEOUT):
                        await work(shared)
                except RateLimited:
                    self._answered(probes=probes)
                    raise
                except Exception as error:
                    self._failed(error)
                else:
                    self._answered(probes=probes)
                    return
        if self._closes and any(window.end for window in windows):
            message = "Budgets can't be read just now, and nothing is spent without them. Try again in a moment."
            raise BudgetUnavailable(message, retry_after=STORAGE_PAUSE)
        await work(self.own)

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
