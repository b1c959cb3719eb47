"""Answers in the background: workflows of DBOS, each of which survives the process that runs it."""

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID

from app.database import jobs
from app.database.attempt import encoded, make
from app.database.conversations import LOST_AFTER, Body, NotFound
from app.database.engine import DatabaseUnavailable, unavailable
from app.database.replay import Replay
from app.database.schema import jobs_url
from app.database.store import Store
from app.errors import AppError
from app.http.application import App
from app.llm.client import LLMClient
from app.telemetry.logs import exception_fields

QUEUE = "answers"
VERSION = "1"
"""Of all workflows. DBOS would take a hash of their code: those of an earlier release would never be gone on with."""
LOOK_FOR_JOBS_EVERY = 0.2
WRITE_EVERY = 0.2
"""Seconds between two looks whether there are events to store, and between two of a client's for new ones."""
CHECK_EVERY = 1.0
"""Seconds between two looks whether an answer was cancelled, and between two heartbeats."""
END_WITHIN = 5.0
"""Seconds that DBOS gets at the end to note what is made."""

log = structlog.get_logger("app.background")


class Background:
    """Makes answers in the background, in this process. There is one at a time, as there is one DBOS.

    Args:
        app: the application.
        store: the tables.
    """

    def __init__(self, app: App, store: Store) -> None:
        self.app = app
        self._state = app.state
        self._store = store
        self._worker = store.worker = f"{socket.gethostname()}-{secrets.token_hex(8)}"
        self._is_open = False
        self._beats: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, once the database answers. Jobs run in this event loop, so they may use the models."""
        if _running:
            return
        settings = self._state.settings
        logger = logging.getLogger("dbos")
        config: DBOSConfig = {
            "name": "app",
            "system_database_url": jobs_url(settings),
            "sys_db_pool_size": max(2, settings.database_pool // 2),
            "run_migrations": False,
            "application_version": VERSION,
            "executor_id": self._worker,
            "enable_otlp": False,
            "log_level": "WARNING",
        }
        self._dbos = DBOS(config=config)
        logger.handlers.clear()
        logger.propagate = True
        try:
            DBOS.launch()
        except BaseException:
            DBOS.destroy()
            raise
        _running.append(self)
        self._beats = asyncio.create_task(self._beat_on())
        await DBOS.register_queue_async(
            QUEUE,
            worker_concurrency=settings.background_answers,
            polling_interval_sec=LOOK_FOR_JOBS_EVERY,
            on_conflict="always_update",
        )
        self._is_open = True

    async def stop(self) -> None:
        """End. What is being made is taken over by another worker, or by this service's next start."""
        if self not in _running:
            return
        self._is_open = False
        tasks = [*_tasks, *([self._beats] if self._beats else [])]
        for task in tasks:
            task.cancel()
        await asyncio.wait([*tasks, *_ending], timeout=END_WITHIN)
        with suppress(AppError):
            await jobs.seen(self._store, self._worker, LOST_AFTER, leaves=True)
        # DBOS has put its own pool of threads in the place of the event loop's, and ends it.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        # Else a thread that waits for a lost database would hold the process for ever.
        self._dbos._sys_db._retry_connection_errors = False  # noqa: SLF001 - DBOS takes it at its start alone
        await asyncio.to_thread(DBOS.destroy)
        _running.remove(self)

    @property
    def in_flight(self) -> int:
        """How many answers this process makes now."""
        return len(_tasks)

    def check(self) -> None:
        """Raise DatabaseUnavailable if no job can be taken now."""
        if not self._is_open:
            raise unavailable()

    async def submit(self, response: str) -> None:
        """Hand a stored answer's job to the queue; once only, however often this is called."""
        with SetWorkflowID(response):
            await DBOS.enqueue_workflow_async(QUEUE, answer, response)
        await jobs.queued(self._store, response)

    async def delete(self, responses: list[str]) -> None:
        """Delete the jobs of answers, which hold their ids and nothing else."""
        if self._is_open:
            await DBOS.delete_workflows_async(responses)

    async def beat(self) -> None:
        """Tell the others that this worker is there, and take over from those that are not."""
        lost = await jobs.seen(self._store, self._worker, LOST_AFTER)
        if lost:
            await asyncio.to_thread(DBOS._recover_pending_workflows, lost)  # noqa: SLF001 - what DBOS' own server calls
            await jobs.forget(self._store, lost)
        for response in await jobs.unqueued(self._store, int(time.time() - LOST_AFTER)):
            await self.submit(response)

    async def _beat_on(self) -> None:
        """Beat until cancelled."""
        while True:
            try:
                await self.beat()
            except AppError:
                pass  # the database does not answer
            except Exception as error:  # noqa: BLE001 - whatever goes wrong once, the next beat may go well
                log.error("jobs can't be looked after", **exception_fields(error))
            await asyncio.sleep(CHECK_EVERY)

    # --- One answer ---------------------------------------------------------------------------------------------------

    async def run(self, response: str) -> float | None:
        """Make an answer, or go on with it; return the seconds after which to try again, None if it is complete."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an answer is made in a task")
        _tasks.add(task)
        try:
            while True:
                try:
                    claimed = await jobs.claim(self._store, response)
                    return await self._attempt(*claimed) if claimed else None
                except (jobs.Lost, NotFound):
                    return None
                except DatabaseUnavailable:
                    await asyncio.sleep(CHECK_EVERY)
        finally:
            _tasks.discard(task)
            _ending.add(task)
            task.add_done_callback(_ending.discard)

    async def _attempt(self, row: Any, given: list[Body]) -> float | None:
        stored, _ = await jobs.events_after(self._store, row.id, -1, 10**9)
        replay = Replay(stored, row.attempt)
        pending: list[tuple[int, Body]] = []
        work = asyncio.create_task(make(self._state, self._store, row, given, replay, pending, len(stored)))
        checked_at = time.monotonic()
        try:
            while not work.done():
                await asyncio.wait([work], timeout=WRITE_EVERY)
                if not work.done() and (pending or time.monotonic() > checked_at + CHECK_EVERY):
                    checked_at = time.monotonic()
                    count = len(pending)
                    with suppress(DatabaseUnavailable):  # written with the next ones
                        await jobs.note(self._store, row, pending[:count])
                        del pending[:count]
            final = work.result()
        finally:
            work.cancel()
            await asyncio.wait([work])
        if isinstance(final, float):
            await jobs.put_back(self._store, row)
            return final
        while True:
            try:
                await jobs.note(self._store, row, pending, final)
            except DatabaseUnavailable:
                await asyncio.sleep(CHECK_EVERY)
            else:
                return None

    # --- Its events ---------------------------------------------------------------------------------------------------

    async def events(self, response: str, after: int) -> AsyncIterator[bytes]:
        """Yield the events of an answer that follow a number, as they come, to the last."""
        is_last = False
        while not is_last:
            found, is_last = await jobs.events_after(self._store, response, after)
            for event in found:
                after = event["sequence_number"]
                yield encoded(event)
            if not found and not is_last:
                await asyncio.sleep(WRITE_EVERY)


_running: list[Background] = []
_tasks: set[asyncio.Task[Any]] = set()
_ending: set[asyncio.Task[Any]] = set()
"""Of answers that are made, while DBOS notes it."""


def llm_for(caller: str) -> LLMClient:
    """Return a client of the models for a job, as `App.llm_for` does."""
    return _running[-1].app.llm_for(caller)


@DBOS.workflow(name="app.answer", max_recovery_attempts=1000)
async def answer(response: str) -> None:
    """Make an answer, whatever it takes."""
    while (seconds := await attempt(response)) is not None:
        await DBOS.sleep_async(seconds)


@DBOS.step(name="app.attempt")
async def attempt(response: str) -> float | None:
    """Make an answer, or return the seconds after which to try again."""
    return await _running[-1].run(response)
