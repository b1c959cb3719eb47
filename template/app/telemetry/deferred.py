"""Deferred: what may be recorded a few milliseconds later, together with more of its kind."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context

import structlog

from app.telemetry.logs import exception_fields

WITHIN = 0.005
"""Seconds after which deferred work is done."""

log = structlog.get_logger("app")


class Deferred:
    """Work that can wait: one piece of it after the other takes a third of the time.

    Between the steps of requests, each piece finds none of its code in the processor's caches. Work is deferred only
    while it is open.
    """

    def __init__(self) -> None:
        self._works: deque[Callable[[], object]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = False  # whether it is done soon anyway, or just now
        self._nothing_bound = Context()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Defer work within the context."""
        self._loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            self._loop, self._is_due = None, False
            self.flush()

    def add(self, work: Callable[[], object]) -> None:
        """Do work within a few milliseconds, or now. What it does must not depend on when."""
        self._works.append(work)
        if self._is_due:
            return
        if self._loop is None:
            self.flush()
        else:
            self._is_due = True
            self._loop.call_later(WITHIN, self._on_time, context=self._nothing_bound)

    def flush(self) -> None:
        """Do all that waits, and what that adds."""
        was_due, self._is_due = self._is_due, True
        while self._works:
            try:
                self._works.popleft()()
            except Exception as error:  # noqa: BLE001 - it is nobody else's
                log.error("what was deferred has failed", **exception_fields(error))
        self._is_due = was_due

    def _on_time(self) -> None:
        self.flush()
        self._is_due = False
