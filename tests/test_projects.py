"""Every shape of project installs, passes its own tests, and is clean by ruff and mypy."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_rendering import SHAPES

from conftest import ROOT, Render, run, tree

READ_BY_NO_TEST = (".github", ".gitlab-ci.yml", ".copier-answers.yml")

Install = Callable[[Path], Path]


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Install what a project asks for, once for each pyproject.toml; return the folder of its commands.

    uv keeps the versions of a lock that it finds, so the project is tested with the pinned versions of this repository.
    """
    environments: dict[bytes, Path] = {}

    def install(project: Path) -> Path:
        asked = (project / "pyproject.toml").read_bytes()
        if asked not in environments:
            folder = tmp_path_factory.mktemp("environment")
            shutil.copy(project / "pyproject.toml", folder)
            shutil.copy(ROOT / "uv.lock", folder)
            run("uv", "sync", "--quiet", "--python", sys.executable, "--directory", folder, cwd=folder)
            environments[asked] = folder / ".venv/bin"
        return environments[asked]

    return install


@pytest.fixture(scope="module")
def passed() -> set[str]:
    """Digests of what has been checked already: most shapes share most of their files."""
    return set()


def is_new(passed: set[str], *parts: object) -> bool:
    """Tell whether these files, with these tools, have not been checked yet, and note them."""
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    new = digest not in passed
    passed.add(digest)
    return new


def python_of(project: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(project).items() if name.endswith(".py")}


shapes = pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)


@pytest.mark.xdist_group("tests")
@shapes
def test_its_own_tests_pass(render: Render, install: Install, passed: set[str], answers: dict[str, str]) -> None:
    project = render(**answers)
    for name in READ_BY_NO_TEST:  # so that shapes which differ in these alone are one
        shutil.rmtree(project / name) if (project / name).is_dir() else (project / name).unlink(missing_ok=True)
    commands = install(project)
    if is_new(passed, "pytest", tree(project)):
        run(commands / "pytest", "--quiet", cwd=project)


@pytest.mark.xdist_group("style")
@shapes
def test_ruff_finds_nothing(render: Render, install: Install, passed: set[str], answers: dict[str, str]) -> None:
    project = render(**answers)
    commands = install(project)
    if is_new(passed, "ruff", python_of(project), (project / "ruff.toml").read_bytes()):
        run(commands / "ruff", "check", cwd=project)
        run(commands / "ruff", "format", "--check", cwd=project)


@pytest.mark.xdist_group("style")
@shapes
def test_mypy_finds_nothing(render: Render, install: Install, passed: set[str], answers: dict[str, str]) -> None:
    project = render(**answers)
    commands = install(project)
    if is_new(passed, "mypy", commands, python_of(project), (project / "mypy.ini").read_bytes()):
        run(commands / "mypy", cwd=project)


@pytest.mark.xdist_group("style")
def test_this_repository_is_clean_where_it_stands() -> None:
    tools = Path(sys.executable).parent
    run(tools / "ruff", "check", cwd=ROOT)
    run(tools / "ruff", "format", "--check", cwd=ROOT)
    run(tools / "mypy", cwd=ROOT)
    run(tools / "mypy", cwd=ROOT / "template")


@pytest.mark.xdist_group("style")
def test_the_default_answers_are_the_defaults_of_the_settings(render: Render, install: Install) -> None:
    """So template/ runs where it stands, without a settings file."""
    project = render()
    show = "from app.config import Settings; print(Settings().model_dump_json())"
    environment = {"PATH": "/usr/bin:/bin"}
    python = install(project) / "python"
    with_file = json.loads(run(python, "-c", show, cwd=project, env=environment))
    (project / "app/settings.toml").unlink()
    assert json.loads(run(python, "-c", show, cwd=project, env=environment)) == with_file
