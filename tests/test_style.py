"""Every shape of project, and this repository, is clean by ruff and mypy."""

import json
import sys
from pathlib import Path

import pytest

from shapes import SHAPES
from test_own_page import FILES, with_the_page
from workspace import FULL_MATRIX, ROOT, CheckTypes, Install, Once, Render, run, tree

TYPED = {shape: answers for shape, answers in SHAPES.items() if FULL_MATRIX or not answers.get("database")}
"""With the database, a project's Python is that of template/ where it stands, which is checked in any case."""


def python_of(project: Path, *others: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, text) for name, text in tree(project).items() if name.endswith(".py") or name in others)


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_ruff_finds_nothing(render: Render, install: Install, once: Once, answers: dict[str, str | bool]) -> None:
    project = render(**answers)
    tools = install(project)

    def check() -> None:
        run(tools / "ruff", "check", cwd=project)
        run(tools / "ruff", "format", "--check", cwd=project)

    once(python_of(project, "ruff.toml"), check)


@pytest.mark.parametrize("answers", TYPED.values(), ids=TYPED)
def test_mypy_finds_nothing(
    render: Render, install: Install, once: Once, check_types: CheckTypes, answers: dict[str, str | bool]
) -> None:
    project = render(**answers)
    tools = install(project)
    once(python_of(project, "mypy.ini"), lambda: check_types(tools / "mypy", project))


def test_this_repository_is_clean_and_so_is_the_template_where_it_stands(check_types: CheckTypes) -> None:
    tools = Path(sys.executable).parent
    run(tools / "ruff", "check", cwd=ROOT)
    run(tools / "ruff", "format", "--check", cwd=ROOT)
    run(tools / "mypy", cwd=ROOT)
    check_types(tools / "mypy", ROOT / "template")


def test_the_files_of_the_page_on_own_endpoints_are_clean(tmp_path: Path, check_types: CheckTypes) -> None:
    """After the template where it stands: mypy has read all but these files by then."""
    tools, product = Path(sys.executable).parent, with_the_page(tmp_path)
    names = [name for name in [*FILES, "tests/test_others.py"] if name.endswith(".py")]
    check_types(tools / "mypy", product, *names)
    run(tools / "ruff", "check", "--ignore", "S608,T201,FBT,INP001,PT028", *names, cwd=product)


def test_the_default_answers_are_the_defaults_of_the_settings(render: Render, install: Install) -> None:
    """So template/ runs where it stands, without a settings file."""
    project = render()
    python = install(project) / "python"
    show = "from app.config import Settings; print(Settings().model_dump_json())"
    environment = {"PATH": "/usr/bin:/bin"}
    with_file = json.loads(run(python, "-c", show, cwd=project, env=environment))
    (project / "app/settings.toml").unlink()
    assert json.loads(run(python, "-c", show, cwd=project, env=environment)) == with_file
