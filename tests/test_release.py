"""`python release.py X.Y.Z` commits a release, or says why it doesn't and changes nothing."""

import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from workspace import ROOT, run, snapshot

CHANGELOG = """# Changelog

## [Unreleased]

### Added

- Something.

## [0.2.0] - 2026-01-01

### Security

- Something older.
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """This repository at 0.2.0, with one change that is not released."""
    repository = snapshot(tmp_path / "repository")
    place(repository, "pyproject.toml", "version = ", "0.2.0")
    place(repository, "template/app/__init__.py", "TEMPLATE_VERSION = ", "0.2.0")
    (repository / "CHANGELOG.md").write_text(CHANGELOG, "utf-8")
    run("git", "init", "--quiet", cwd=repository)
    run("git", "config", "user.name", "Somebody", cwd=repository)
    run("git", "config", "user.email", "somebody@example.com", cwd=repository)
    save(repository)
    return repository


def place(repository: Path, name: str, before: str, version: str) -> None:
    path = repository / name
    lines = path.read_text("utf-8").splitlines(keepends=True)
    [number] = [number for number, line in enumerate(lines) if line.startswith(before)]
    lines[number] = f'{before}"{version}"\n'
    path.write_text("".join(lines), "utf-8")


def save(repository: Path) -> None:
    run("git", "add", "--all", cwd=repository)
    run("git", "commit", "--quiet", "--message", "Work", cwd=repository)


def released(repository: Path, *arguments: str) -> tuple[int, str]:
    """Return the command's exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "release.py", *arguments],
        cwd=repository,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_release_is_one_commit_with_its_version_and_its_entry(repository: Path) -> None:
    assert released(repository, "7.0.0") == (0, "")
    assert run("git", "log", "-1", "--format=%s", cwd=repository) == "Release 7.0.0\n"
    changed = run("git", "diff", "--name-only", "HEAD~1", "HEAD", cwd=repository).split()
    assert changed == ["CHANGELOG.md", "pyproject.toml", "template/app/__init__.py", "uv.lock"]
    assert run("git", "status", "--porcelain", cwd=repository) == ""
    assert tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]["version"] == "7.0.0"
    assert 'TEMPLATE_VERSION = "7.0.0"\n' in (repository / "template/app/__init__.py").read_text("utf-8")
    locked = tomllib.loads((repository / "uv.lock").read_text("utf-8"))["package"]
    assert [package["version"] for package in locked if package["name"] == "copier-ai-backend"] == ["7.0.0"]


def test_what_was_unreleased_becomes_the_entry(repository: Path) -> None:
    released(repository, "7.0.0")
    heading = f"## [Unreleased]\n\n## [7.0.0] - {datetime.now(UTC).date()}\n"
    assert (repository / "CHANGELOG.md").read_text("utf-8") == CHANGELOG.replace("## [Unreleased]\n", heading)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ([], 2, "Usage: python release.py X.Y.Z"),
        (["0.3"], 1, "0.3 is not X.Y.Z"),
        (["v0.3.0"], 1, "v0.3.0 is not X.Y.Z"),
        (["0.3.01"], 1, "0.3.01 is not X.Y.Z"),
        (["0.2.0"], 1, "0.2.0 is not higher than 0.2.0"),
        (["0.1.9"], 1, "0.1.9 is not higher than 0.2.0"),
    ],
)
def test_a_version_that_is_none_or_no_higher_is_refused(
    repository: Path, arguments: list[str], code: int, reason: str
) -> None:
    assert released(repository, *arguments) == (code, f"{reason}\n")
    assert run("git", "status", "--porcelain", cwd=repository) == ""


def test_without_an_entry_there_is_no_release(repository: Path) -> None:
    path = repository / "CHANGELOG.md"
    path.write_text(CHANGELOG.replace("### Added\n\n- Something.\n\n", ""), "utf-8")
    save(repository)
    assert released(repository, "7.0.0") == (1, 'CHANGELOG.md has no change under "Unreleased".\n')
    assert run("git", "status", "--porcelain", cwd=repository) == ""


def test_uncommitted_changes_are_no_release(repository: Path) -> None:
    (repository / "README.md").write_text("Half a change.\n", "utf-8")
    code, said = released(repository, "7.0.0")
    assert (code, said.split(":")[0]) == (1, "Commit or stash first")
    assert run("git", "diff", "--name-only", cwd=repository) == "README.md\n"


def test_a_place_that_has_lost_its_version_changes_nothing(repository: Path) -> None:
    (repository / "template/app/__init__.py").write_text('"""The backend."""\n', "utf-8")
    save(repository)
    assert released(repository, "7.0.0") == (1, "template/app/__init__.py has no version\n")
    assert run("git", "status", "--porcelain", cwd=repository) == ""


def test_the_template_tells_the_version_of_this_repository() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f'TEMPLATE_VERSION = "{version}"\n' in (ROOT / "template/app/__init__.py").read_text("utf-8")
