"""Where a file moved, an update leaves a pointer: a team's edit of the old file is never lost without a word."""

import re
from pathlib import Path

import pytest

from updates.conftest import Later, Start
from updates.moved import MOVED, Moved, check_moves, pointer, pointers, upgrading
from updates.projects import COPIER, OFF, THE_TEAMS, copy, differences, files, update
from updates.releases import VERSIONS, commit, newest
from workspace import FULL_MATRIX, ROOT, run

MARK = "# Changed by our team.\n"
LIMITS = '''"""Moved to app/access/limits.py in release 0.5.0. Delete this file once nothing imports it."""

from app.access.limits import *  # noqa: F403
'''
POINTERS = [
    (Moved("app/limits.py", "0.5.0", "app/access/limits.py"), LIMITS),
    (
        Moved("app/version.py", "0.5.0", "removed"),
        '"""Removed in release 0.5.0. Delete this file once nothing imports it."""\n',
    ),
    (
        Moved("tests/test_http.py", "0.5.0", "tests/template/test_http.py"),
        '"""Moved to tests/template/test_http.py in release 0.5.0. Delete this file."""\n',
    ),
    (
        Moved("k8s/base.yaml", "0.6.0", "k8s/base/all.yaml"),
        "# Moved to k8s/base/all.yaml in release 0.6.0. Delete this file.\n",
    ),
    (
        Moved("docs/scaling.md", "0.6.0", "docs/deploying.md"),
        "<!-- Moved to docs/deploying.md in release 0.6.0. Delete this file. -->\n",
    ),
]


def edit_moved_files(project: Path) -> list[str]:
    """Add a line to the end of every file that has moved since; return their paths."""
    edited = [entry.old for entry in MOVED if (project / entry.old).exists()]
    for name in edited:
        with (project / name).open("a") as file:
            file.write(MARK)
    commit(project, "Our edits")
    return edited


def neither_shown_nor_kept(project: Path, edited: list[str]) -> list[str]:
    """Return the files whose edit is neither in the project nor part of a conflict that git shows."""
    unmerged = run("git", "diff", "--name-only", "--diff-filter=U", cwd=project).splitlines()
    there = files(project)
    return [name for name in edited if MARK.encode() not in there.get(name, b"") and name not in unmerged]


def test_every_file_that_left_the_template_has_a_pointer_and_is_named_in_the_changelog(template: Path) -> None:
    check_moves(template)


@pytest.mark.parametrize("version", VERSIONS[: VERSIONS.index("0.5.0")])  # which moved most of them
def test_an_edit_of_a_file_that_moved_is_shown_as_a_conflict(start: Start, version: str) -> None:
    """The team can take the pointer as UPDATING.md says; where it had deleted the old file, there is none."""
    project = start(version, OFF)
    (project / "app/problems.py").unlink()
    edited = edit_moved_files(project)
    run(COPIER, "update", "--defaults", cwd=project)
    assert neither_shown_nor_kept(project, edited) == []
    assert run("git", "diff", "--name-only", "--diff-filter=U", cwd=project).splitlines() == sorted(edited)
    assert not (project / "app/problems.py").exists()
    run("git", "checkout", "--theirs", *edited, cwd=project)
    assert {name: (project / name).read_bytes() for name in edited}.items() <= pointers(version).items()


@pytest.mark.parametrize(("entry", "text"), POINTERS, ids=lambda value: value.old if isinstance(value, Moved) else "")
def test_a_pointer_says_where_the_file_went(entry: Moved, text: str) -> None:
    assert pointer(entry) == text.encode()


def test_pointers_of_an_updated_project_are_the_teams_to_keep_or_delete(later: Later, tmp_path: Path) -> None:
    repository, fresh = later(change_a_line)
    project = copy(repository, "0.4.0", tmp_path / "project", OFF)
    update(project, "--vcs-ref", f"v{newest()}")
    (project / "app/limits.py").unlink()
    (project / "app/logs.py").write_text(MARK)
    commit(project, "Our own in place of pointers")
    update(project)
    left = {name: text for name, text in pointers("0.4.0").items() if name != "app/limits.py"}
    the_teams = {"app/logs.py": MARK.encode()} | {name: (project / name).read_bytes() for name in THE_TEAMS}
    assert differences(project, files(fresh(OFF)) | left | the_teams) == []


def test_a_new_project_gets_no_pointer_and_keeps_a_file_of_its_own_at_an_old_path(later: Later, tmp_path: Path) -> None:
    repository, fresh = later(change_a_line)
    project = copy(repository, newest(), tmp_path / "project", OFF)
    assert not {entry.old for entry in MOVED} & files(project).keys()
    (project / "app/logs.py").write_text(MARK)
    commit(project, "Our own module")
    update(project)
    assert differences(project, files(fresh(OFF)) | {"app/logs.py": MARK.encode()}) == []


def test_the_changelogs_command_shows_what_the_update_to_040_took(start: Start) -> None:
    told = upgrading((ROOT / "CHANGELOG.md").read_text("utf-8"), "0.5.0")
    [command] = [block for block in re.findall(r"```sh\n(.*?)```", told, re.DOTALL) if "app/answers.py" in block]
    for edited in (True, False) if FULL_MATRIX else (True,):
        project = start("0.3.0", OFF)
        if edited:
            with (project / "app/answers.py").open("a") as file:
                file.write(MARK)
            commit(project, "Our edit")
        update(project, "--vcs-ref", "v0.4.0")
        commit(project, "Update to 0.4.0")
        update(project)
        commit(project, "Update to the newest, which brings a pointer")
        (project / "app/answers.py").unlink()
        commit(project, "Delete the pointer")
        shown = run("bash", "-e", "-c", command, cwd=project)
        assert (f"\n+{MARK}" in shown) if edited else shown == "", shown


def change_a_line(repository: Path) -> None:
    path = repository / "template/pytest.ini"
    path.write_text(path.read_text("utf-8").replace("testpaths = tests\n", "testpaths = ./tests\n"), "utf-8")
