"""The nightly workflow's own commands. What they start, `uv sync` and pytest, is tested by the other tests."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from updates.projects import COPIER
from updates.releases import VERSIONS, newest
from workspace import ROOT, run

JOBS: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text("utf-8"))["jobs"]


def step(job: str, name: str) -> dict[str, Any]:
    """Return a step of a job by its name."""
    [found] = [step for step in JOBS[job]["steps"] if step.get("name") == name]
    return dict(found)


def command(folder: Path, name: str, script: str) -> str:
    """Put a command before all others of its name; return the PATH that does so."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("nth", JOBS["release"]["strategy"]["matrix"]["nth"])
def test_the_last_three_releases_are_copied(template: Path, tmp_path: Path, nth: int) -> None:
    path = command(tmp_path, "uvx", f'shift; exec {COPIER} "$@"')
    env = os.environ | {"NTH": str(nth), "RUNNER_TEMP": str(tmp_path), "PATH": path}
    run("bash", "-e", "-c", step("release", "Copy")["run"], cwd=template, env=env)
    answers = yaml.safe_load((tmp_path / "project/.copier-answers.yml").read_text("utf-8"))
    assert answers["_commit"] == f"v{[*VERSIONS, newest()][-nth]}"


@pytest.mark.parametrize(("told", "calls"), [("false", ["list", "create"]), ("true", ["list"])])
def test_a_failure_opens_an_issue_unless_one_is_open(tmp_path: Path, told: str, calls: list[str]) -> None:
    tell = step("tell", "Tell")
    path = command(tmp_path, "gh", f'echo "$2" >> calls; [ "$2" = create ] || echo {told}')
    run("bash", "-e", "-c", tell["run"], cwd=tmp_path, env={**tell["env"], "PATH": path})
    assert (tmp_path / "calls").read_text().split() == calls
    assert JOBS["tell"]["if"] == "failure()"
    assert set(JOBS["tell"]["needs"]) == JOBS.keys() - {"tell"}
    assert JOBS["tell"]["permissions"] == {"issues": "write"}


def test_what_ci_leaves_out_is_run() -> None:
    [command] = [step["run"] for step in JOBS["template"]["steps"] if " pytest tests/" in step.get("run", "")]
    started = [ROOT / path for path in command.split() if path.startswith("tests/")]
    for path in (ROOT / "tests").rglob("test_*.py"):
        if "import FULL_MATRIX" in path.read_text("utf-8"):
            assert {path, *path.parents} & set(started), path
