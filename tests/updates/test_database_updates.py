"""The option `database`: turned on in an update from any release, beside a team's own tables, and turned off again."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from updates.conftest import Later, Start
from updates.projects import OPTIONS, Fresh, check_with_edits, copy, differences, files, update
from updates.releases import VERSIONS, commit, newest
from workspace import FULL_MATRIX, run

ALL = OPTIONS["all on"]
ON = ("--data", "database=true")
OFF = ("--data", "database=false")
NOTES = '''"""Ours: a table."""

from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
'''
MIGRATION = '''"""Ours: notes."""

import sqlalchemy as sa
from alembic import op

revision = "notes"
down_revision = "own_0"


def upgrade() -> None:
    op.create_table("notes", sa.Column("id", sa.Integer(), primary_key=True), sa.Column("text", sa.String()))
'''
THEIRS = '''"""Of a later release."""

import sqlalchemy as sa
from alembic import op

revision = "template_later"
down_revision = "{head}"


def upgrade() -> None:
    op.add_column("kept_workers", sa.Column("host", sa.String()))
'''


@pytest.mark.parametrize("version", VERSIONS if FULL_MATRIX else [VERSIONS[0], VERSIONS[-1]])
def test_it_is_turned_on_by_an_update_from_any_release_beside_a_teams_edits(
    start: Start, fresh: Fresh, version: str
) -> None:
    check_with_edits(start(version, ALL), {**ALL, "database": True}, fresh, *ON)


def test_a_teams_table_and_rows_stay_whatever_an_update_brings_and_when_it_is_turned_off(
    later: Later, tmp_path: Path
) -> None:
    def add_a_migration(repository: Path) -> None:
        folder = repository / "template/migrations/template"
        head = max(folder.glob("template_*.py"), key=lambda path: int(path.stem.rpartition("_")[2])).stem
        (folder / "template_later.py").write_text(THEIRS.format(head=head))

    repository, fresh = later(add_a_migration)
    project = copy(repository, newest(), tmp_path / "project", {"database": True})
    ours = {"app/notes.py": NOTES.encode(), "migrations/own/notes.py": MIGRATION.encode()}
    for name, text in ours.items():
        (project / name).write_bytes(text)
    own = (project / "app/own.py").read_text("utf-8").replace("from app.config", "import app.notes\nfrom app.config", 1)
    (project / "app/own.py").write_text(own, "utf-8")
    commit(project, "Our table")
    migrate(project)
    with closing(sqlite3.connect(project / "data/app.sqlite")) as connection, connection:
        connection.execute("INSERT INTO notes VALUES (1, 'kept')")

    update(project)
    ours["app/own.py"] = own.encode()
    assert differences(project, files(fresh({"database": True})) | ours) == []
    migrate(project)
    assert rows(project, "SELECT text FROM notes") == [("kept",)]
    assert ("host",) in rows(project, "SELECT name FROM pragma_table_info('kept_workers')")

    commit(project, "Update")
    update(project, *OFF)
    there = files(project)
    assert ours.items() <= there.items()
    assert not [name for name in there.keys() - ours.keys() if name.startswith(("app/database", "migrations"))]
    assert rows(project, "SELECT text FROM notes") == [("kept",)]


def migrate(project: Path) -> None:
    """Run the project's command, with the libraries of this repository."""
    run(sys.executable, "-m", "app", "migrate", cwd=project, env={"PATH": ""})


def rows(project: Path, query: str) -> list[tuple[str]]:
    """Return what a query finds in the project's file."""
    with closing(sqlite3.connect(project / "data/app.sqlite")) as connection:
        return list(connection.execute(query))
