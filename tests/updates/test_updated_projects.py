"""What all edits and an update lead to passes the tests that guard a team's work, the team's own, ruff and mypy.

Once, from the first release: test_edited_updates.py holds that every other cell leads to the same Python, and
test_plain_updates.py that projects without edits are those of test_projects.py.
"""

import shutil
from pathlib import Path

import pytest

from updates.conftest import Start
from updates.edits import edit
from updates.projects import OFF, OPTIONS, Fresh, update
from updates.releases import VERSIONS, commit
from workspace import CheckTypes, Install, run


def test_an_edited_and_updated_project_passes_its_own_tests(
    start: Start, install: Install, check_types: CheckTypes
) -> None:
    project = start(VERSIONS[0], OFF)
    edit(project)
    commit(project, "Our edits")
    update(project)
    commands = install(project)
    run(commands / "ruff", "check", cwd=project)
    run(commands / "ruff", "format", "--check", cwd=project)
    check_types(commands / "mypy", project)
    run(commands / "pytest", "--quiet", cwd=project)


@pytest.mark.parametrize("options", ["all off", "own server"])
def test_an_edited_project_starts_with_its_settings(
    fresh: Fresh, install: Install, tmp_path: Path, options: str
) -> None:
    """Its own tests read no settings, and these are the two sorts of them that options lead to."""
    project = shutil.copytree(fresh(OPTIONS[options]), tmp_path / "project")
    edit(project)
    said = run(install(project) / "python", "-c", "from app.main import app; print(app.title)", cwd=project, env={})
    assert said == "AI backend\n"
