"""Service: the database as the rest of the application knows it (`Database` in app/environment.py)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module

import structlog
from prometheus_client import Gauge
from sqlalchemy.exc import SQLAlchemyError

from app.config import Settings, SettingsError
from app.database import jobs
from app.database.background import Background
from app.database.engine import CHECK_EVERY, DatabaseUnavailable, Engine
from app.database.routes import router
from app.database.schema import check_schema, connected, migrate
from app.database.store import Store
from app.errors import AppError
from app.http.application import App
from app.telemetry.logs import exception_fields

PURGE_EVERY = 3600.0
"""Seconds between two looks for what has expired."""

UP = Gauge("database_up", "1 while the database answers.", multiprocess_mode="livemin")
CONNECTIONS = Gauge("database_connections", "Connections to the database in use.", multiprocess_mode="livesum")
WAITING = Gauge("background_answers_waiting", "Answers that nobody makes yet.", multiprocess_mode="livemax")
MAKING = Gauge("background_answers_in_flight", "Answers being made in the background.", multiprocess_mode="livesum")

log = structlog.get_logger("app.database")


class Service:
    """Opens the database with the application, and watches it.

    Args:
        settings: the settings.

    Raises:
        SettingsError: the address can't be one of a database.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_checked = False
        self.router = router
        try:
            self.engine = Engine(settings)
        except (SQLAlchemyError, ValueError, ImportError, OSError) as error:
            raise SettingsError(f"database_url: this is no address of a database ({type(error).__name__})") from None
        self.store = Store(self.engine, settings.max_body_bytes)

    def check(self) -> None:
        """Raise SettingsError if the schema is older than this code. With `--dev`, it is brought up to date instead.

        A database that does not answer stops nothing: what needs none goes on.
        """
        try:
            if self._settings.dev:
                self.migrate()
            with connected(self._settings) as connection:
                check_schema(connection)
        except SettingsError as error:
            if "does not answer" not in str(error):
                raise  # else the log tells of it as soon as there is one

    def migrate(self, source: str = "") -> None:
        """Bring the schema up to date, and copy what another database holds; as in `schema.migrate`."""
        import_module("app.own")  # where the team's tables are
        migrate(self._settings, source)

    def degraded(self) -> list[str]:
        """Return what doesn't work now, a sentence each."""
        return [] if self.engine.is_up else ["The database does not answer: nothing can be stored or continued."]

    @asynccontextmanager
    async def open(self, app: App) -> AsyncIterator[None]:
        """Open the database, and close it.

        Raises:
            SettingsError: its schema is older than this code.
        """
        self.background = Background(app, self.store)
        try:
            await self._look()
            watch = asyncio.create_task(self._watch())
            try:
                yield
            finally:
                watch.cancel()
                await asyncio.wait([watch])
                await self.background.stop()
        finally:
            await self.engine.sqlalchemy.dispose()

    async def _look(self) -> None:
        """Find out whether the database answers; when it first does, whether its schema is right."""
        if not self._is_checked:
            with contextlib.suppress(DatabaseUnavailable):
                async with self.engine.read() as connection:
                    await connection.run_sync(check_schema)
                self._is_checked = True
        was_up, self.engine.is_up = self.engine.is_up, self._is_checked and await self.engine.ping()
        if self.engine.is_up:
            try:
                await self.background.start()
            except Exception as error:  # noqa: BLE001 - what needs no job goes on
                log.error("jobs can't be run", **exception_fields(error))
        UP.set(self.engine.is_up)
        if was_up != self.engine.is_up:
            log.warning("the database answers again" if self.engine.is_up else "the database does not answer")

    async def _watch(self) -> None:
        purged_at = 0.0
        while True:
            await asyncio.sleep(CHECK_EVERY)
            try:
                await self._look()
                CONNECTIONS.set(self.engine.in_use)
                MAKING.set(self.background.in_flight)
                if self.engine.is_up:
                    WAITING.set(await jobs.waiting(self.store))
                if self.engine.is_up and time.time() > purged_at + PURGE_EVERY and not await self._purge():
                    purged_at = time.time()
            except SettingsError as error:  # it has come back with another schema
                log.error(str(error))
            except AppError:
                pass  # it has gone away again
            except Exception as error:  # noqa: BLE001 - whatever goes wrong once, it goes on being looked after
                log.error("the database can't be looked after", **exception_fields(error))

    async def _purge(self) -> bool:
        """Delete some of what has expired; return whether there may be more."""
        purged = await self.store.purge(int(time.time()) - self._settings.keep_days * 86400)
        if purged:
            await self.background.delete(purged)
        return bool(purged)
