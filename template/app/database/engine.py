"""The connections: pools with limits, one writer at a time in SQLite, and one error for whatever fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import structlog
from fastapi import Depends
from pydantic_core import from_json, to_json
from sqlalchemy import QueuePool, event, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from starlette.requests import HTTPConnection

from app.config import Settings
from app.errors import AppError
from app.http.application import state_of

log = structlog.get_logger("app.database")

DATA = Path(__file__).parents[2] / "data"
"""Where SQLite's files are, unless `database_url` says otherwise."""
CHECK_EVERY = 2.0
"""Seconds between two checks whether the database answers."""


class DatabaseUnavailable(AppError):
    status, code = 503, "database_unavailable"


def address(settings: Settings) -> str:
    """Return the database's address."""
    return settings.database_url or f"sqlite+aiosqlite:///{DATA / 'app.sqlite'}"


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite address; None of another one."""
    parsed = make_url(url)
    return Path(parsed.database or "") if parsed.drivername.startswith("sqlite") else None


def make_engine(settings: Settings) -> AsyncEngine:
    """Return an engine for the settings' address. Nothing is connected yet."""
    url, seconds = address(settings), settings.database_timeout
    options: dict[str, Any] = {
        "json_serializer": lambda value: to_json(value).decode(),
        "json_deserializer": from_json,
        "hide_parameters": True,  # an error's text goes into logs
    }
    if file := sqlite_file(url):
        prepare_folder(file)
        engine = create_async_engine(url, connect_args={"timeout": seconds}, pool_timeout=seconds, **options)
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin)
        return engine
    milliseconds = int(seconds * 1000)
    return create_async_engine(
        url,
        connect_args={
            "connect_timeout": max(2, round(seconds)),  # libpq takes no less
            "options": f"-c statement_timeout={milliseconds} -c idle_in_transaction_session_timeout=60000",
            "keepalives_idle": 30,
        },
        pool_size=settings.database_pool,
        max_overflow=0,
        pool_timeout=seconds,
        pool_pre_ping=True,
        pool_recycle=1800,
        **options,
    )


def prepare_folder(file: Path) -> None:
    """Make the folder of an SQLite file. Git leaves out the one that is ours."""
    if not file.parent.exists():
        file.parent.mkdir(parents=True)
        if file.parent == DATA:
            (DATA / ".gitignore").write_text("*\n")


def _set_up_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
    connection.isolation_level = None  # sqlite3 begins nothing by itself: _begin does


def _begin(connection: Any) -> None:
    is_writer = connection.get_execution_options().get("is_writer")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")


class Engine:
    """Runs transactions, each within the time limit.

    Args:
        settings: the settings.

    Attributes:
        sqlalchemy: SQLAlchemy's engine.
        sessions: makes the team's sessions.
        is_up: whether the database has answered the last time.
    """

    def __init__(self, settings: Settings) -> None:
        self.sqlalchemy = make_engine(settings)
        self.sessions = async_sessionmaker(self.sqlalchemy, expire_on_commit=False)
        self.is_up = True
        self._seconds = settings.database_timeout
        self._writing = self.sqlalchemy.execution_options(is_writer=True)
        self._writer = asyncio.Lock() if sqlite_file(address(settings)) else None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction, which is committed.

        Raises:
            DatabaseUnavailable: the database does not answer, or not in time.
        """
        async with self._transaction(self.sqlalchemy, None) as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection as `read` does, to write with."""
        async with self._transaction(self._writing, self._writer) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine, lock: asyncio.Lock | None) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(2 * self._seconds), AsyncExitStack() as stack:
                if lock:
                    await stack.enter_async_context(lock)
                yield await stack.enter_async_context(engine.begin())
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            if isinstance(error, DBAPIError) and not is_outage(error):
                raise
            log.warning("a transaction has failed", reason=type(error).__name__)
            if not isinstance(error, PoolTimeoutError):  # all connections are in use: busy, but there
                self.is_up = False
            raise unavailable() from error

    def check(self) -> None:
        """Raise DatabaseUnavailable if the database did not answer the last time: no call of a model is lost then."""
        if not self.is_up:
            raise unavailable()

    @property
    def in_use(self) -> int:
        """How many connections are in use."""
        pool = self.sqlalchemy.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    async def ping(self) -> bool:
        """Return whether the database answers now."""
        try:
            async with self.read() as connection:
                await connection.execute(text("SELECT 1"))
        except DatabaseUnavailable:
            return False
        return True


def is_outage(error: SQLAlchemyError) -> bool:
    """Return whether the database, and not what it was told, is at fault."""
    if isinstance(error, PoolTimeoutError):
        return True
    return isinstance(error, DBAPIError) and type(error).__name__ in (
        "OperationalError",
        "InterfaceError",
        "DBAPIError",
    )


def unavailable() -> DatabaseUnavailable:
    """Return the error for what needs the database while it does not answer."""
    message = "The database does not answer. Try again, or send store: false and the whole conversation."
    return DatabaseUnavailable(message, retry_after=CHECK_EVERY)


class HasEngine(Protocol):
    """What is needed here of a Service, which imports this module."""

    engine: Engine


async def get_session(request: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """Yield a session, for one request. What is not committed (`await session.commit()`) is rolled back at its end.

    Raises:
        DatabaseUnavailable: the database does not answer.
    """
    engine = cast(HasEngine, state_of(request).database).engine
    engine.check()
    try:
        async with engine.sessions() as session:
            yield session
    except SQLAlchemyError as error:
        if not is_outage(error):
            raise
        engine.is_up = False
        raise unavailable() from error


Session = Annotated[AsyncSession, Depends(get_session)]
"""A session of the database, for endpoints: `async def notes(session: Session)`."""
