"""Releases that would break projects are caught, by the checks of test_edited_updates.py and test_moved_files.py."""

from pathlib import Path

import pytest

from updates.conftest import Change, Later
from updates.moved import check_moves
from updates.projects import OWN_SERVER, check_with_edits, copy
from updates.releases import newest

SETTINGS = "template/app/settings.toml.jinja"


def replace(repository: Path, old: str, new: str, *names: str) -> None:
    """Replace a text in files of the template; each of them must have it."""
    for name in names:
        path = repository / name
        before = path.read_text("utf-8")
        assert old in before, f"{name} has no {old!r}"
        path.write_text(before.replace(old, new), "utf-8")


def rename_question(repository: Path) -> None:
    replace(repository, "default_model", "main_model", "copier.yml", SETTINGS)
    replace(repository, "\nmain_model = ", "\ndefault_model = ", SETTINGS)  # the setting's own name


def check(later: Later, tmp_path: Path, change: Change) -> None:
    repository, fresh = later(change)
    check_with_edits(copy(repository, newest(), tmp_path / "project", OWN_SERVER), OWN_SERVER, fresh)


def test_a_change_that_touches_no_edit_passes(later: Later, tmp_path: Path) -> None:
    """So what fails below fails for the reason that it names."""

    def change(repository: Path) -> None:
        replace(repository, "testpaths = tests", "testpaths = ./tests", "template/pytest.ini")

    check(later, tmp_path, change)


def test_a_question_renamed_without_a_default_is_caught(later: Later, tmp_path: Path) -> None:
    def change(repository: Path) -> None:
        rename_question(repository)
        replace(repository, "  default: gpt-4o\n", "", "copier.yml")

    with pytest.raises(AssertionError, match='Question "main_model" is required'):
        check(later, tmp_path, change)


def test_a_question_renamed_with_a_default_that_forgets_the_answer_is_caught(later: Later, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"answers are lost: \['default_model'\]"):
        check(later, tmp_path, rename_question)


def test_a_file_rewritten_is_caught(later: Later, tmp_path: Path) -> None:
    """Even by a tool that changes no more than where its lines break."""

    def change(repository: Path) -> None:
        replace(repository, "\n\n", "\n", "template/app/main.py")
        replace(repository, "    ", "\t", "template/app/main.py")

    with pytest.raises(AssertionError, match=r"unmerged: \['app/main.py'\]"):
        check(later, tmp_path, change)


def test_a_changed_line_that_a_team_has_edited_is_caught(later: Later, tmp_path: Path) -> None:
    def change(repository: Path) -> None:
        replace(
            repository,
            "shutdown_grace: float = Field(default=30,",
            "shutdown_grace: float = Field(default=31,",
            "template/app/config.py",
        )

    with pytest.raises(AssertionError, match=r"unmerged: \['app/config.py'\]"):
        check(later, tmp_path, change)


def test_a_file_that_is_no_longer_the_teams_alone_is_caught(later: Later, tmp_path: Path) -> None:
    def change(repository: Path) -> None:
        replace(repository, "[README.md, app/own.py]", "[README.md]", "copier.yml")
        replace(repository, "updates never change", "updates do change", "template/app/own.py")

    with pytest.raises(AssertionError, match=r"unmerged: \['app/own.py'\]"):
        check(later, tmp_path, change)


def move_a_file(repository: Path) -> None:
    app = repository / "template/app"
    (app / "errors.py").rename(app / "problem.py")


def test_a_file_that_moves_without_a_pointer_is_caught(later: Later) -> None:
    repository, _ = later(move_a_file)
    with pytest.raises(AssertionError, match=r"without an entry under `moved` in copier.yml: \['app/errors.py'\]"):
        check_moves(repository)


def test_a_file_that_moves_without_a_word_in_the_changelog_is_caught(later: Later) -> None:
    def change(repository: Path) -> None:
        move_a_file(repository)
        replace(
            repository,
            "  default:\n    - [",
            "  default:\n    - [app/errors.py, 9.0.0, app/problem.py]\n    - [",
            "copier.yml",
        )

    repository, _ = later(change)
    with pytest.raises(AssertionError, match=r"in CHANGELOG.md: \['app/errors.py'\]"):
        check_moves(repository)
    heading = "## [Unreleased]\n"
    told = f"{heading}\n### Upgrading\n\n- `app.errors` is now `app.problem`.\n"
    replace(repository, heading, told, "CHANGELOG.md")
    check_moves(repository)


def test_an_entry_whose_new_path_does_not_exist_is_caught(later: Later) -> None:
    repository, _ = later(lambda repository: replace(repository, "app/access/limits.py", "app/limit.py", "copier.yml"))
    with pytest.raises(AssertionError, match=r"that don't exist: \['app/limit.py'\]"):
        check_moves(repository)
