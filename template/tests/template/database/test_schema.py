"""The schema: migrations of ours and of the team's, starts with an older one, and moves to another database."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from fastapi import APIRouter
from sqlalchemy import insert, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.testclient import TestClient

from app import own
from app.config import Settings, SettingsError
from app.database import Base, Session
from app.database.schema import connected
from app.database.service import Service
from app.database.tables import Conversation, Event, Item, Response
from app.environment import find_database, load_settings
from app.main import create_app
from tests.conftest import MakeSettings
from tests.database.fixtures import POSTGRES
from tests.serving import PROJECT, Process
from tests.template.running import said_by

CONVERSATION = {"id": "conv_1", "caller": "a", "created_at": 1, "used_at": 1, "about": {"a": "\0"}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_the_migrations_make_the_tables_of_the_code(database: str) -> None:
    with connected(Settings(database_url=database)) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_start_without_migrated_tables_ends_with_one_sentence(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new.sqlite"
    code, lines = said_by(env={"APP_DATABASE_URL": url})
    assert (code, lines) == (
        1,
        ["Settings: database_url: the database has no tables yet; run `python -m app migrate`"],
    )


def test_a_start_on_an_older_schema_says_what_is_missing(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/old.sqlite")
    Service(settings).migrate()
    with closing(sqlite3.connect(tmp_path / "old.sqlite")) as connection, connection:
        connection.execute("DELETE FROM alembic_version WHERE version_num = 'own_0'")
    with pytest.raises(SettingsError, match="older than this code \\(own_0 is missing\\); run `python -m app migrate`"):
        Service(settings).check()
    with pytest.raises(SettingsError, match="older"), TestClient(create_app(settings)):
        pass


def test_a_newer_schema_stops_nothing_so_that_a_release_can_be_taken_back(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/new.sqlite")
    Service(settings).migrate()
    with closing(sqlite3.connect(tmp_path / "new.sqlite")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'template_999' WHERE version_num = 'template_1'")
    Service(settings).check()


def test_the_command_migrates_and_then_the_service_starts(tmp_path: Path) -> None:
    env = {"APP_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/data/app.sqlite"}
    with Process("migrate", env=env, ready=False) as process:
        assert process.wait() == 0, process.output
    assert said_by("migrate", env=env) == (0, [])
    with Process("--workers", "2", env=env):
        pass


def test_development_needs_no_command(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/data/app.sqlite", dev=True)
    Service(settings).check()
    with TestClient(create_app(settings)) as client:
        assert client.get("/ready").json() == {"status": "ready"}


@pytest.mark.parametrize(
    "url", ["mysql://a:s3cret@h/d", "s3cret", "sqlite:///s3cret", "postgresql+psycopg://a:s3cret@h:port/d"]
)
def test_an_address_that_cant_work_is_one_sentence_without_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_DATABASE_URL", url)
    with pytest.raises(SettingsError, match="database_url") as caught:
        find_database(load_settings())
    assert "s3cret" not in str(caught.value)


def test_a_database_that_does_not_answer_is_a_sentence_to_migrate_and_no_reason_not_to_start() -> None:
    url = "postgresql+psycopg://a:s3cret@127.0.0.1:1/d"
    code, lines = said_by("migrate", env={"APP_DATABASE_URL": url})
    assert (code, lines) == (1, ["Settings: database_url: the database does not answer (OperationalError)"])
    with Process(env={"APP_DATABASE_URL": url}) as process:
        assert "s3cret" not in process.output


def test_the_address_is_shown_nowhere() -> None:
    assert "s3cret" not in repr(Settings(database_url="postgresql+psycopg://a:s3cret@h/d"))


def test_without_the_folder_an_address_is_refused_and_nothing_is_imported(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("database", "__pycache__"))
    code = "import sys, app.main; print({'sqlalchemy', 'alembic', 'dbos', 'psycopg'} & sys.modules.keys())"

    def run(*command: str, url: str) -> str:
        env = {"APP_ENV_FILE": "", "APP_DATABASE_URL": url, "PATH": ""}
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, *command], cwd=tmp_path, env=env, text=True, capture_output=True, check=False
        )
        return done.stdout + done.stderr

    assert run("-c", code, url="") == "set()\n"
    assert run("-m", "app", url="sqlite+aiosqlite:///x") == (
        "Settings: database_url: this project has no app/database (copier update --data database=true)\n"
    )
    assert "invalid choice: 'migrate'" in run("-m", "app", "migrate", url="")


def test_switched_off_it_is_not_there() -> None:
    assert find_database(Settings(database_url="off")) is None


# --- The team's tables ------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this project with a table of the team's."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # its app/own.py counts
    copy = tmp_path / "project"
    for name in ("app", "migrations"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "alembic.ini", copy)
    with (copy / "app/own.py").open("a") as file:
        file.write(
            "\n\nfrom sqlalchemy.orm import Mapped, mapped_column\nfrom app.database import Base\n\n\n"
            "class Note(Base):\n    __tablename__ = 'notes'\n    id: Mapped[int] = mapped_column(primary_key=True)\n"
            "    text: Mapped[str]\n"
        )
    return copy


def test_a_table_of_the_teams_gets_a_migration_on_the_teams_branch(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "app.sqlite"
    monkeypatch.setenv("APP_DATABASE_URL", f"sqlite+aiosqlite:///{file}")
    Service(load_settings()).migrate()  # as `python -m app migrate` does

    def run(*command: str) -> str:
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", *command], cwd=project, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("alembic", "revision", "--autogenerate", "--head", "own@head", "-m", "Add notes")
    [made] = set((project / "migrations/own").glob("*.py")) - {project / "migrations/own/own_0.py"}
    assert 'create_table(\n        "notes"' in made.read_text()
    assert "kept_" not in made.read_text()
    run("app", "migrate")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO notes VALUES (1, 'kept')")
    # a later release of the template adds a migration of its own, and the next one of the team's follows
    theirs = (project / "migrations/template/template_1.py").read_text()
    head, _, _ = theirs.partition("\n\nINTEGER")
    body = '\n\n\ndef upgrade():\n    op.add_column("kept_workers", sa.Column("host", sa.String()))\n'
    head = head.replace('"template_1"', '"template_2"').replace("down_revision = None", 'down_revision = "template_1"')
    (project / "migrations/template/template_2.py").write_text(head.replace('("template",)', "None") + body)
    run("app", "migrate")
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute("SELECT text FROM notes").fetchall() == [("kept",)]
        assert ("host",) in connection.execute("SELECT name FROM pragma_table_info('kept_workers')").fetchall()


@pytest.mark.anyio
async def test_a_session_of_a_test_keeps_nothing(session: AsyncSession, database: str) -> None:
    session.add(Conversation(**CONVERSATION))
    await session.commit()
    assert (await session.scalars(select(Conversation))).one().about == {"a": "\0"}
    with connected(Settings(database_url=database), seconds=0.1) as connection:
        assert connection.execute(select(Conversation)).all() == []


@pytest.mark.usefixtures("database")
def test_an_endpoint_of_the_teams_gets_a_session(
    settings: MakeSettings, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter()

    @router.post("/conversations/{name}")
    async def add(name: str, session: Session, *, commit: bool) -> None:
        session.add(Conversation(**CONVERSATION | {"id": name}))
        if commit:
            await session.commit()

    @router.get("/conversations")
    async def names(session: Session) -> list[str]:
        return list(await session.scalars(select(Conversation.id)))

    monkeypatch.setattr(own, "routers", [router], raising=False)
    with TestClient(create_app(settings()), headers=headers) as client:
        client.post("/conversations/a?commit=true").raise_for_status()
        client.post("/conversations/b?commit=false").raise_for_status()
        assert client.get("/conversations").json() == ["a"]


# --- Another database -------------------------------------------------------------------------------------------------


RESPONSE = {"id": "resp_1", "caller": "a", "created_at": 1, "status": "completed", "conversation": "conv_1"}
ITEM = {"caller": "a", "id": "msg_1", "response": "resp_1", "is_output": True, "size": 2, "body": {"a": "é"}}


def test_what_one_database_holds_is_copied_into_an_empty_one(database: str, tmp_path: Path) -> None:
    source = Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/small.sqlite")
    Service(source).migrate()
    with connected(source) as connection:
        connection.execute(insert(Conversation).values(**CONVERSATION))
        connection.execute(insert(Response).values(**RESPONSE, body={}))
        connection.execute(insert(Item), [ITEM] * 1001)
        connection.execute(insert(Event).values(response="resp_1", number=0, body={"type": "a"}))
        connection.commit()
    settings = Settings(database_url=database)
    Service(settings).migrate(source.database_url)
    tables = (Conversation, Response, Item, Event)
    with connected(settings) as connection, connected(source) as other:
        for table in tables:
            rows = select(table.__table__).order_by(*table.__table__.primary_key)
            assert connection.execute(rows).all() == other.execute(rows).all()
        connection.execute(insert(Item), [ITEM])  # with a key of its own
        connection.commit()
    with pytest.raises(SettingsError, match="copy: the table kept_conversations already has rows"):
        Service(settings).migrate(source.database_url)


@pytest.mark.skipif(bool(POSTGRES), reason="of SQLite alone")
def test_a_running_services_file_is_backed_up_by_one_command(
    database: str, settings: MakeSettings, headers: dict[str, str], tmp_path: Path
) -> None:
    backup = tmp_path / "backup.sqlite"
    with TestClient(create_app(settings()), headers=headers) as client:
        made = client.post("/v1/responses", json={"model": "demo", "input": "Hello"}).json()
        with closing(sqlite3.connect(make_url(database).database or "")) as connection:
            connection.execute("VACUUM INTO ?", (str(backup),))
    url = f"sqlite+aiosqlite:///{backup}"
    with TestClient(create_app(settings(database_url=url)), headers=headers) as client:
        assert client.get(f"/v1/responses/{made['id']}").json() == made


@pytest.mark.usefixtures("database")
def test_the_page_of_the_api_has_the_endpoints_with_state(settings: MakeSettings) -> None:
    with TestClient(create_app(settings(api_docs=True))) as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert {"get", "delete"} <= paths["/v1/responses/{response_id}"].keys()
    body = paths["/v1/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"store", "background", "previous_response_id", "conversation"} <= body["properties"].keys()
