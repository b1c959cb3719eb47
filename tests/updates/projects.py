"""Projects of a team: copied at some release, kept in git, and updated by the real command."""

import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import copier
import yaml

from shapes import INDEX
from updates.edits import RENAMED_TO, edit, lost
from updates.moved import pointers
from updates.releases import commit
from workspace import run, tree

COPIER = Path(sys.executable).with_name("copier")
MARKER = re.compile(rb"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
SHOWS_MARKERS = "UPDATING.md"
"""In 0.2.0 it shows what a conflict looks like; later ones indent that."""
THE_TEAMS = ("README.md", "app/own.py")
"""Files that are copied once, and that no update writes to."""

Answers = Mapping[str, str | bool]
Fresh = Callable[[Answers], Path]
"""Return a copy of the release that projects are updated to, for comparison."""

OFF: Answers = {"ci": "none", "container": False}
OWN_SERVER: Answers = {"api_base": "http://localhost:8001/v1", "default_model": "Qwen/Qwen3-8B"}
OWN_INDEX: Answers = {"package_index": INDEX}
OPTIONS: dict[str, Answers] = {
    "all off": OFF,
    "GitHub": {**OFF, "ci": "github"},
    "GitLab": {**OFF, "ci": "gitlab"},
    "container": {**OFF, "container": True},
    "Kubernetes": {**OFF, "container": True, "kubernetes": True},
    "own server": {**OFF, **OWN_SERVER},
    "own index": {**OFF, **OWN_INDEX},
    "all on": {"ci": "github", "container": True, "kubernetes": True, **OWN_SERVER, **OWN_INDEX},
}
"""Every option alone, none of them and all of them."""


def copy(template: Path, version: str, destination: Path, answers: Answers) -> Path:
    """Copy a project at a release, and commit it."""
    copier.run_copy(str(template), destination, data=dict(answers), vcs_ref=f"v{version}", defaults=True, quiet=True)
    run("git", "init", "--quiet", cwd=destination)
    commit(destination, "Start from copier-ai-backend")
    return destination


def update(project: Path, *options: str) -> str:
    """Update a project to the newest release by the command line, and return what it printed.

    Args:
        project: the project; nothing in it is uncommitted.
        options: further options of `copier update`.

    Raises:
        AssertionError: it fails, or leaves something that a person must mend.
    """
    printed = run(COPIER, "update", "--defaults", *options, cwd=project)
    unmerged = run("git", "diff", "--name-only", "--diff-filter=U", "-z", cwd=project).split("\0")[:-1]
    nothing(unmerged, "unmerged")
    nothing([str(path) for path in project.rglob("*.rej")], "rejected")
    marked = [name for name, content in files(project).items() if MARKER.search(content) and name != SHOWS_MARKERS]
    nothing(marked, "conflict markers")
    return printed


def check_without_edits(project: Path, answers: Answers, fresh: Fresh) -> None:
    """Update a project that nobody has edited: it becomes a fresh copy, but for pointers and the team's files."""
    expected = beside_a_fresh_copy(project)
    update(project)
    nothing(forgotten(project, answers), "answers are lost")
    nothing(differences(project, files(fresh(answers)) | expected), "not as in a fresh copy")


def check_with_edits(project: Path, answers: Answers, fresh: Fresh, *options: str) -> None:
    """Edit a project and update it: it becomes what a fresh copy with the same edits is.

    Args:
        project: the project.
        answers: what it is answered after the update.
        fresh: makes the copy.
        options: further options of `copier update`, such as an answer that is new.
    """
    edit(project)
    commit(project, "Our edits")
    added = pointers(release_of(project)) | {RENAMED_TO: (project / RENAMED_TO).read_bytes()}
    update(project, *options)
    nothing(forgotten(project, answers), "answers are lost")
    nothing(lost(project), "edits are lost")
    with tempfile.TemporaryDirectory() as folder:
        expected = shutil.copytree(fresh(answers), Path(folder, "project"))
        edit(expected)
        nothing(differences(project, files(expected) | added), "not as in a fresh copy with the edits")


def beside_a_fresh_copy(project: Path) -> dict[str, bytes]:
    """Return what an update to the newest release will leave in a project and a fresh copy doesn't have like that."""
    return {name: (project / name).read_bytes() for name in THE_TEAMS} | pointers(release_of(project))


def release_of(project: Path) -> str:
    """Return the release that a project is at."""
    version: str = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))["_commit"]
    return version.removeprefix("v")


def nothing(found: list[str], reason: str) -> None:
    """Fail with what was found."""
    assert not found, f"{reason}: {found}"


def forgotten(project: Path, answers: Answers) -> list[str]:
    """Return the questions whose answers a project no longer knows."""
    known = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))
    return sorted(question for question, answer in answers.items() if known.get(question) != answer)


def files(project: Path) -> dict[str, bytes]:
    """Return a project's files by their paths, but for what git ignores and the lock, which uv writes."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=project).split("\0")
    paths = {name: project / name for name in listed if name and name != "uv.lock"}
    return {name: path.read_bytes() for name, path in paths.items() if path.exists()}


def run_by_its_tests(project: Path) -> frozenset[tuple[str, bytes]]:
    """Return what a project's tests, ruff and mypy read. They see neither settings nor what delivers the project."""
    return frozenset(
        (name, content)
        for name, content in tree(project).items()
        if (name.startswith(("app/", "tests/")) and name != "app/settings.toml" and not name.endswith(".pyc"))
        or name in ("mypy.ini", "pytest.ini", "ruff.toml")
    )


def differences(project: Path, expected: Mapping[str, bytes]) -> list[str]:
    """Return the paths of files that only one side has, or that differ."""
    found = files(project)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
