"""A project passes its own tests, on the libraries that it asks for, and every shape of project starts."""

import pytest

from shapes import SHAPES
from updates.projects import run_by_its_tests
from workspace import Install, Once, Render, run


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_its_own_tests_pass(render: Render, install: Install, once: Once, answers: dict[str, str | bool]) -> None:
    """Once for each distinct set of the files that they read: they see neither settings nor what delivers a project.

    With the database, those that guard the template's modules are the same but for its own: test_rendering.py holds it.
    """
    project = render(**answers)
    commands = install(project)
    guards = "tests/template/database" if answers.get("database") else "tests/template"
    once(run_by_its_tests(project), lambda: run(commands / "pytest", "--quiet", "tests", guards, cwd=project))


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_it_starts_with_its_settings(render: Render, install: Install, answers: dict[str, str | bool]) -> None:
    project = render(**answers)
    program = "from app.main import app; print(app.title)"
    title = run(install(project) / "python", "-c", program, cwd=project, env={"PYTHONIOENCODING": "utf-8"})
    assert title == f"{answers.get('project_name', 'AI backend')}\n"
