"""The template as it is published, and projects of teams."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from updates.projects import Answers, Fresh, copy
from updates.releases import after, commit, newest, publish, tag

Start = Callable[..., Path]
Change = Callable[[Path], None]
Later = Callable[[Change], tuple[Path, Fresh]]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a tag for each release; the working tree is the newest."""
    return publish(tmp_path_factory.mktemp("published") / "copier-ai-backend")


@pytest.fixture(scope="session")
def started(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Return a project as it was started at a release, with given answers; to be only copied."""
    projects: dict[tuple[str, tuple[tuple[str, str | bool], ...]], Path] = {}

    def started(version: str, answers: Answers) -> Path:
        key = version, tuple(sorted(answers.items()))
        if key not in projects:
            projects[key] = copy(template, version, tmp_path_factory.mktemp("started") / "project", answers)
        return projects[key]

    return started


@pytest.fixture
def start(started: Start, tmp_path: Path) -> Start:
    """Start a project at a release, with given answers."""
    number = itertools.count(1)
    return lambda version, answers: shutil.copytree(started(version, answers), tmp_path / f"project-{next(number)}")


@pytest.fixture(scope="session")
def fresh(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Return a copy of the newest release with given answers; the same answers get the same copy, to be only read."""
    copies: dict[tuple[tuple[str, str | bool], ...], Path] = {}

    def fresh(answers: Answers) -> Path:
        key = tuple(sorted(answers.items()))
        if key not in copies:
            copies[key] = copy(template, newest(), tmp_path_factory.mktemp("fresh") / "project", answers)
        return copies[key]

    return fresh


@pytest.fixture
def later(template: Path, tmp_path: Path) -> Later:
    """Publish one more release, with a given change; return the repository, and what makes fresh copies of it."""

    def later(change: Change) -> tuple[Path, Fresh]:
        repository = shutil.copytree(template, tmp_path / "later")
        change(repository)
        commit(repository, "A later release")
        tag(repository, after(newest()))
        return repository, lambda answers: copy(repository, after(newest()), tmp_path / "fresh", answers)

    return later
