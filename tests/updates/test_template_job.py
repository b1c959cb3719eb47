"""The jobs that look for a release of the template, on GitHub and GitLab, run as these services run them."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from updates.conftest import Later, Start
from updates.projects import COPIER, OPTIONS, copy
from updates.releases import after, commit, newest
from workspace import run

FOLDERS = ["/home/somebody/copier-ai-backend", "../copier-ai-backend", "~/copier-ai-backend", "C:\\copier-ai-backend"]


def script(project: Path) -> str:
    """Return what a project's job runs."""
    github, gitlab = project / ".github/workflows/template.yml", project / ".gitlab-ci.yml"
    if gitlab.exists():
        return "\n".join(yaml.safe_load(gitlab.read_text("utf-8"))["template"]["script"])
    [step] = [
        step for step in yaml.safe_load(github.read_text("utf-8"))["jobs"]["look"]["steps"] if step.get("id") == "look"
    ]
    return str(step["run"])


def look(project: Path, tmp_path: Path, uvx: str = f'shift; exec {COPIER} "$@"') -> tuple[int, str]:
    """Run the job with the real Copier, or another script for uvx; return its exit code, and all that it wrote."""
    (tmp_path / "uvx").write_text(f"#!/bin/sh\n{uvx}\n")
    (tmp_path / "uvx").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(tmp_path / "output")}
    command = ["bash", "-e", "-c", script(project)]
    done = subprocess.run(
        command, cwd=project, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    output = tmp_path / "output"
    return done.returncode, done.stdout + (output.read_text() if output.exists() else "")


def point_to(project: Path, address: str) -> None:
    """Change the template's address in a project."""
    answers = project / ".copier-answers.yml"
    lines = [
        f"_src_path: {address}" if line.startswith("_src_path: ") else line for line in answers.read_text().splitlines()
    ]
    answers.write_text("\n".join(lines) + "\n")
    commit(project, "Change the address")


@pytest.mark.parametrize("service", ["GitHub", "GitLab"])
def test_a_folder_of_one_machine_is_reported_in_a_sentence(start: Start, tmp_path: Path, service: str) -> None:
    project = start(newest(), OPTIONS[service])
    for folder in FOLDERS:
        point_to(project, folder)
        code, said = look(project, tmp_path)
        assert code == 1, said
        told = f"a folder of one machine, {folder}. UPDATING.md says how to change it.\n"
        assert said.removeprefix("::error::") == f"_src_path in .copier-answers.yml is {told}"


def test_updating_md_has_the_command_that_changes_the_address(start: Start, tmp_path: Path) -> None:
    project = start(newest(), OPTIONS["GitLab"])
    page = (project / "UPDATING.md").read_text("utf-8")
    [command] = re.findall(r"^sed .*_src_path.*$", page, re.MULTILINE)
    run("bash", "-e", "-c", command, cwd=project)
    answers = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))
    assert answers["_src_path"] == "https://git.example.com/copier-ai-backend.git"
    code, said = look(project, tmp_path, uvx="true")
    assert (code, said) == (0, "")


def test_github_gets_to_know_a_newer_release(later: Later, tmp_path: Path) -> None:
    repository, _ = later(lambda _: None)
    project = copy(repository, newest(), tmp_path / "project", OPTIONS["GitHub"])
    point_to(project, f"git+{repository.as_uri()}")
    code, said = look(project, tmp_path)
    assert code == 0, said
    found = json.loads(said.removeprefix("found="))
    assert (found["update_available"], found["latest_version"]) == (True, after(newest()))


def test_gitlabs_job_fails_at_a_newer_release_alone(later: Later, template: Path, tmp_path: Path) -> None:
    repository, _ = later(lambda _: None)
    project = copy(repository, newest(), tmp_path / "project", OPTIONS["GitLab"])
    point_to(project, f"git+{template.as_uri()}")
    assert look(project, tmp_path) == (0, "")
    point_to(project, f"git+{repository.as_uri()}")
    assert look(project, tmp_path) == (2, "")
