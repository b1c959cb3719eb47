"""A database for each test, made from one that has been migrated once: in SQLite, or in TEST_POSTGRES_URL.

Ask for `database` before `client`, and the app keeps what it is told; ask for `session` to test functions of your own.
"""

import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import Settings
from app.database.engine import make_engine
from app.database.service import Service

MakeDatabase = Callable[[], str]
POSTGRES = os.environ.get("TEST_POSTGRES_URL", "")


@pytest.fixture(scope="session")
def make_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeDatabase]:
    """Make a migrated database, and return its address."""
    numbers = itertools.count()
    if not POSTGRES:
        folder = tmp_path_factory.mktemp("databases")
        first = folder / "first.sqlite"
        Service(Settings(database_url=f"sqlite+aiosqlite:///{first}")).migrate()

        def copied() -> str:
            number = next(numbers)
            for name in ("", "-jobs"):
                shutil.copy(folder / f"first{name}.sqlite", folder / f"{number}{name}.sqlite")
            return f"sqlite+aiosqlite:///{folder / str(number)}.sqlite"

        yield copied
        return
    prefix = f"test_{os.getpid()}"
    server = create_engine(make_url(POSTGRES), isolation_level="AUTOCOMMIT")

    def create(name: str, origin: str = "template1") -> str:
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {origin}"))
        return make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)

    made = [prefix]
    Service(Settings(database_url=create(prefix))).migrate()

    def created() -> str:
        made.append(f"{prefix}_{next(numbers)}")
        return create(made[-1], prefix)

    yield created
    with server.connect() as connection:
        for name in made:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def database(make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a fresh database, which apps made in this test use."""
    url = make_database()
    monkeypatch.setenv("APP_DATABASE_URL", url)
    return url


@pytest.fixture
async def session(database: str) -> AsyncIterator[AsyncSession]:
    """A session whose commits are rolled back at the end of the test."""
    engine = make_engine(Settings(database_url=database))
    async with engine.connect() as connection:
        await connection.begin()
        async with AsyncSession(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        await connection.rollback()
    await engine.dispose()
