"""The schema's versions, by Alembic; and how the rows of one database get into another."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from dbos import DBOS
from sqlalchemy import Connection, create_engine, event, func, insert, make_url, select, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from app.config import Settings, SettingsError
from app.database.engine import address, is_outage, prepare_folder, sqlite_file
from app.database.tables import Base

ALEMBIC = Path(__file__).parents[2] / "alembic.ini"
HOW_TO = "run `python -m app migrate`"
BATCH = 500
"""Rows that are copied at a time."""


@contextmanager
def connected(settings: Settings, url: str = "", *, seconds: float | None = None) -> Iterator[Connection]:
    """Yield a connection without asyncio.

    Args:
        settings: where the address is from, unless it is given.
        url: another address.
        seconds: how long to wait for the connection; None takes the setting `database_timeout`.

    Raises:
        SettingsError: the database can't be reached. The sentence does not show the address.
    """
    try:
        parsed = make_url(url or address(settings))
        wait = seconds or settings.database_timeout
        file = sqlite_file(url or address(settings))
        if file:
            prepare_folder(file)
            engine = create_engine(parsed.set(drivername="sqlite"), connect_args={"timeout": wait})
            event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
        else:
            engine = create_engine(parsed, connect_args={"connect_timeout": max(2, round(wait))})
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()
    except (ArgumentError, ImportError) as error:
        raise SettingsError(f"database_url: this is no address of a database ({type(error).__name__})") from None
    except SQLAlchemyError as error:
        if not is_outage(error):
            raise
        raise SettingsError(f"database_url: the database does not answer ({type(error).__name__})") from None


def jobs_url(settings: Settings) -> str:
    """Return where the jobs are kept: in the same Postgres, or in an SQLite file beside ours, which has one writer."""
    url = make_url(address(settings))
    if file := sqlite_file(address(settings)):
        return f"sqlite:///{file.with_name(f'{file.stem}-jobs{file.suffix}')}"
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _config(connection: Connection | None = None) -> Config:
    config = Config(ALEMBIC)
    config.attributes["connection"] = connection
    return config


def check_schema(connection: Connection) -> None:
    """Raise SettingsError if the database's schema is older than this code. A newer one is that of the next release."""
    scripts = ScriptDirectory.from_config(_config())
    found = set(MigrationContext.configure(connection).get_current_heads())
    is_newer = found - {script.revision for script in scripts.walk_revisions()}
    if (missing := set(scripts.get_heads()) - found) and not is_newer:
        state = (
            "has no tables yet" if not found else f"is older than this code ({', '.join(sorted(missing))} is missing)"
        )
        raise SettingsError(f"database_url: the database {state}; {HOW_TO}")


def migrate(settings: Settings, source: str = "") -> None:
    """Bring the schema up to date, and copy what another database holds.

    Args:
        settings: the settings.
        source: address of the other database, whose schema must be up to date; empty copies nothing.

    Raises:
        SettingsError: a database can't be reached; or the one that is copied to is not empty.
    """
    with connected(settings) as connection:
        command.upgrade(_config(connection), "heads")
        DBOS.migrate(jobs_url(settings))
        if source:
            with connected(settings, source) as other:
                check_schema(other)
                copy(other, connection)


def copy(source: Connection, target: Connection) -> None:
    """Copy the rows of all tables, ours and the team's, in one transaction.

    Raises:
        SettingsError: a table already has rows.
    """
    tables = [table for table in Base.metadata.sorted_tables if table.name != "kept_workers"]
    for table in tables:
        if target.scalar(select(func.count()).select_from(table)):
            raise SettingsError(f"copy: the table {table.name} already has rows")
        rows = source.execution_options(yield_per=BATCH).execute(select(table).order_by(*table.primary_key))
        for batch in rows.mappings().partitions(BATCH):
            target.execute(insert(table), [dict(row) for row in batch])
        key = table.autoincrement_column
        if key is not None and target.dialect.name == "postgresql":
            sequence = f"pg_get_serial_sequence('{table.name}', '{key.name}')"
            last = f"SELECT max({key.name}) FROM {table.name}"  # noqa: S608 - names of our own tables
            target.execute(text(f"SELECT setval({sequence}, coalesce(({last}), 1))"))
    target.commit()
