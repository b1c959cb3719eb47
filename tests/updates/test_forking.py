"""The commands of docs/forking.md: a company's patch lies on a release, and the next release is merged into it."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from updates.conftest import Start
from updates.edits import edit, lost
from updates.projects import COPIER, OFF, copy, forgotten
from updates.releases import VERSIONS, commit, newest
from workspace import ROOT, run

PAGE = (ROOT / "docs/forking.md").read_text("utf-8")
START, PUBLISH, MERGE, PUBLISH_AGAIN, MOVE = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
QUESTION, INCLUDE = (block.replace("\n  ", "\n") for block in re.findall(r"  ```yaml\n  (.*?)  ```", PAGE, re.DOTALL))
BEFORE, NEXT = VERSIONS[-1], newest()


class Company(NamedTuple):
    """A company with a fork."""

    fork: Path
    clone: Path
    env: dict[str, str]

    def run(self, commands: str, cwd: Path, version: str) -> None:
        """Run commands of the page while a release is the newest."""
        run("bash", "-e", "-c", commands, cwd=cwd, env=self.env | {"RELEASE": f"v{version}"})


@pytest.fixture
def company(template: Path, tmp_path: Path) -> Company:
    """A company that has forked the last release, and added a question and a file."""
    fork = tmp_path / "fork.git"
    run("git", "init", "--quiet", "--bare", fork, cwd=tmp_path)
    (tmp_path / "uvx").write_text(f'#!/bin/sh\nshift; exec {COPIER} "$@"\n')
    (tmp_path / "uvx").chmod(0o755)
    who = {f"GIT_{role}_{what}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = os.environ | who | {"UPSTREAM": str(template), "FORK": str(fork), "PATH": path}
    company = Company(fork, tmp_path / "company-template", env)
    company.run(START, tmp_path, BEFORE)
    run("git", "push", "--quiet", "--delete", "origin", f"v{NEXT}", cwd=company.clone)  # which isn't released yet
    (company.clone / "company.yml").write_text(QUESTION)
    (company.clone / "template/COMPANY.md.jinja").write_text("Paid by {{ cost_centre }}.\n")
    with (company.clone / "copier.yml").open("a") as file:
        file.write(INCLUDE)
    company.run(PUBLISH, company.clone, BEFORE)
    return company


def test_the_next_release_is_merged_and_reaches_a_project_of_the_fork(company: Company, tmp_path: Path) -> None:
    answers = {**OFF, "cost_centre": "search"}
    project = copy(company.fork, f"{BEFORE}+company.1", tmp_path / "project", answers)
    edit(project)
    commit(project, "Our edits")

    company.run(MERGE + PUBLISH_AGAIN, company.clone, NEXT)
    run(COPIER, "update", "--defaults", cwd=project)

    assert f"_commit: v{NEXT}+company.1\n" in (project / ".copier-answers.yml").read_text()
    assert (project / "COMPANY.md").read_text() == "Paid by search.\n"
    assert forgotten(project, answers) == []
    assert lost(project) == []


def test_a_project_of_the_template_moves_to_the_fork(company: Company, start: Start) -> None:
    project = start(VERSIONS[0], OFF)
    company.run(MOVE, project, BEFORE)
    assert f"_commit: v{BEFORE}+company.1\n" in (project / ".copier-answers.yml").read_text()
    assert (project / "COMPANY.md").read_text() == "Paid by platform.\n"
