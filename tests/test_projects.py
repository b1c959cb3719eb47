"""A project passes its own tests, on the libraries that it asks for, and every shape of project starts."""

import pytest

from shapes import SHAPES
from updates.projects import run_by_its_tests
from workspace import FULL_MATRIX, Install, Once, Render, run


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_its_own_tests_pass(render: Render, install: Install, once: Once, answers: dict[str, str | bool]) -> None:
    """Once for each distinct set of the files that they read: they see neither settings nor what delivers a project.

    With the database, all files but its own are the same, as test_rendering.py holds, and so are all tests but its own.
    """
    project = render(**answers)
    commands = install(project)
    is_part = answers.get("database") and not FULL_MATRIX
    tests = ["tests/template/database"] if is_part else ["tests", "tests/template"]
    once(run_by_its_tests(project), lambda: run(commands / "pytest", "--quiet", *tests, cwd=project))


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_it_starts_with_its_settings(render: Render, install: Install, answers: dict[str, str | bool]) -> None:
    project = render(**answers)
    program = "from app.main import app; print(app.title)"
    title = run(install(project) / "python", "-c", program, cwd=project, env={"PYTHONIOENCODING": "utf-8"})
    assert title == f"{answers.get('project_name', 'AI backend')}\n"
