"""Updates that are not plain: step by step, with other answers, from a dirty tree, interrupted, or by recopy."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from updates.conftest import Later, Start
from updates.edits import JOBS, edit, lost
from updates.projects import (
    COPIER,
    OFF,
    OPTIONS,
    THE_TEAMS,
    Fresh,
    beside_a_fresh_copy,
    copy,
    differences,
    files,
    update,
)
from updates.releases import AUTHOR, VERSIONS, commit, newest
from workspace import FULL_MATRIX, ROOT, run

ALL = OPTIONS["all on"]


def refusal(project: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run Copier, which must fail, and return what it said."""
    done = subprocess.run(
        [COPIER, *arguments],
        cwd=project,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    return done.stdout


def test_releases_taken_one_by_one_and_skipped_give_the_same(start: Start) -> None:
    """With all edits; the second project skips what is between. The nightly run starts at the first release."""
    versions = VERSIONS if FULL_MATRIX else VERSIONS[-2:]
    one_by_one, at_once = start(versions[0], ALL), start(versions[0], ALL)
    for project in (one_by_one, at_once):
        edit(project)
        commit(project, "Our edits")
    for version in [*versions[1:], newest()]:
        update(one_by_one, "--vcs-ref", f"v{version}")
        commit(one_by_one, f"Update to {version}")
    update(at_once)
    assert lost(at_once) == []
    assert differences(one_by_one, files(at_once)) == []


def test_an_option_turned_on_and_off_again_leaves_nothing_and_takes_nothing(start: Start) -> None:
    project = start(newest(), OFF)
    edit(project)
    (project / ".github/workflows").mkdir(parents=True)
    (project / ".github/workflows/nightly.yml").write_text("# ours\n")
    commit(project, "Our edits")
    before = files(project)
    update(project, "--data", "ci=github", "--data", "container=true", "--data", "kubernetes=true")
    commit(project, "On")
    added = set(files(project)) - set(before)
    assert {".github/workflows/ci.yml", "Dockerfile", "k8s/base/deployment.yaml"} <= added
    update(project, "--data", "ci=none", "--data", "container=false")
    assert lost(project) == []
    assert differences(project, before) == []


def test_an_option_turned_off_deletes_its_files_with_what_was_edited_in_them(start: Start, fresh: Fresh) -> None:
    """As UPDATING.md says. Git still has them."""
    project = start(VERSIONS[0], ALL)
    [workflow] = [name for name in JOBS if name.startswith(".github")]
    with (project / workflow).open("a") as file:
        file.write(JOBS[workflow])
    commit(project, "Our job")
    expected = beside_a_fresh_copy(project)
    update(project, "--data", "ci=none", "--data", "container=false")
    off = {**{question: answer for question, answer in ALL.items() if question != "kubernetes"}, **OFF}
    assert differences(project, files(fresh(off)) | expected) == []
    assert JOBS[workflow] in run("git", "show", f"HEAD:{workflow}", cwd=project)


def test_an_answer_can_be_changed_without_a_later_release(start: Start) -> None:
    project = start(VERSIONS[0], OFF)
    update(project, "--vcs-ref", ":current:", "--data", "ci=gitlab")
    assert differences(project, files(start(VERSIONS[0], OPTIONS["GitLab"]))) == []


def test_a_recopy_writes_a_fresh_copy_over_all_but_the_teams_own_files(start: Start, fresh: Fresh) -> None:
    """It takes edits back and keeps what the template has dropped, which is why UPDATING.md says to update."""
    project = start(VERSIONS[0], ALL)
    edit(project)
    commit(project, "Our edits")
    the_teams = {name: (project / name).read_bytes() for name in THE_TEAMS}
    before = files(project)
    run(COPIER, "recopy", "--force", cwd=project)
    assert differences(project, before | files(fresh(ALL)) | the_teams) == []


def test_a_dirty_tree_is_refused_in_a_sentence_and_left_as_it_is(start: Start) -> None:
    project = start(VERSIONS[0], OFF)
    (project / "mypy.ini").write_text("# half an edit\n")
    before = files(project)
    said = refusal(project, "update", "--defaults")
    assert said == (
        "Destination repository is dirty; cannot continue. Please commit or stash your local changes and retry.\n"
    )
    assert files(project) == before


def test_answers_from_an_older_set_of_questions_do(start: Start, fresh: Fresh) -> None:
    """Questions that are new get their defaults, and answers that nobody asks for any more are dropped."""
    project = start(VERSIONS[0], {})
    path = project / ".copier-answers.yml"
    answers = yaml.safe_load(path.read_text())
    for question in ("container", "package_index", "project_slug"):
        del answers[question]
    path.write_text(yaml.safe_dump(answers | {"cache": "redis", "ci": "github"}))
    commit(project, "As an older template would have written it")
    expected = beside_a_fresh_copy(project)
    update(project)
    assert differences(project, files(fresh({})) | expected) == []


def test_an_interrupted_update_is_refused_until_it_is_thrown_away_and_then_gives_all(
    start: Start, tmp_path: Path
) -> None:
    """Copier is killed when it has written its files and not yet the team's edits: the worst moment."""
    project, undisturbed = start(VERSIONS[0], ALL), start(VERSIONS[0], ALL)
    for each in (project, undisturbed):
        edit(each)
        commit(each, "Our edits")
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin/git"
    git.write_text(
        f'#!/bin/sh\ncase " $* " in *" apply "*) kill -9 $PPID ;; *) exec {shutil.which("git")} "$@" ;; esac\n'
    )
    git.chmod(0o755)
    path = f"{git.parent}:{os.environ['PATH']}"
    refusal(project, "update", "--defaults", env=os.environ | {"PATH": path})
    assert f"_commit: v{newest()}" in (project / ".copier-answers.yml").read_text(), "so it must not be committed"
    assert "a line in main.py" in lost(project)

    assert refusal(project, "update", "--defaults").startswith("Destination repository is dirty")
    run("bash", "-c", "git reset --hard && git clean -fd", cwd=project)
    update(project)
    update(undisturbed)
    assert lost(project) == []
    assert differences(project, files(undisturbed)) == []


def test_a_conflict_can_be_solved_as_told(later: Later, tmp_path: Path) -> None:
    """Where both changed the same line: both stand in the file, and git takes either side of it."""

    def change(root: Path, answer: str) -> None:
        path = root / "pytest.ini"
        path.write_text(path.read_text().replace("testpaths = tests\n", f"testpaths = {answer}\n"))

    repository, _ = later(lambda repository: change(repository / "template", "theirs"))
    project = copy(repository, newest(), tmp_path / "project", OFF)
    change(project, "ours")
    commit(project, "Change the same line")

    with pytest.raises(AssertionError, match=r"unmerged: \['pytest.ini'\]"):
        update(project)
    text = (project / "pytest.ini").read_text()
    assert "<<<<<<< before updating\ntestpaths = ours\n=======\ntestpaths = theirs\n>>>>>>> after updating\n" in text
    assert "both modified:   pytest.ini" in run("git", "status", cwd=project)
    for side in ("ours", "theirs"):
        run("git", "checkout", f"--{side}", "pytest.ini", cwd=project)
        assert f"testpaths = {side}\n" in (project / "pytest.ini").read_text()
    run("git", "add", "pytest.ini", cwd=project)
    assert run("git", "ls-files", "--unmerged", cwd=project) == ""


NEEDS_A_HAND = {
    "max_in_flight: int = Field(default=2000,": "image_hosts",
    "retries: int = Field(default=2,": "max_tokens_limit",
}
"""A line that a team had changed in `app/config.py`: the setting that a release added or changed right beside it.

Git can't tell that from a change of the same line."""


@pytest.mark.parametrize(("line", "neighbour"), NEEDS_A_HAND.items())
def test_where_an_edit_needs_a_hand_the_changelog_tells_which(start: Start, line: str, neighbour: str) -> None:
    project = start("0.1.0", OFF)
    settings = project / "app/config.py"
    assert line in settings.read_text()
    settings.write_text(settings.read_text().replace(line, line.replace("=2", "=1")))
    commit(project, "Our default")
    with pytest.raises(AssertionError, match=r"unmerged: \['app/config.py'\]"):
        update(project)

    sections = re.findall(r"(?ms)^### Upgrading\n(.*?)^##", (ROOT / "CHANGELOG.md").read_text())
    entries = [entry for section in sections for entry in re.split(r"(?m)^- ", section)]
    setting = line.partition(":")[0]
    assert any(f"`{setting}`" in told and f"`{neighbour}`" in told and "`app/config.py`" in told for told in entries)


@pytest.mark.parametrize("start_at", ["0.4.0", newest()])
def test_a_global_gitignore_takes_no_line_of_the_env_example(later: Later, tmp_path: Path, start_at: str) -> None:
    """From 0.4.0, whose own .gitignore doesn't name the file, as long as git tracks it: CHANGELOG.md says so."""

    def change(repository: Path) -> None:
        path = repository / "template/.env.example"
        path.write_text(path.read_text("utf-8").replace("# Copy this file to .env", "# Copy this to .env"), "utf-8")

    repository, _ = later(change)
    (tmp_path / "ignore").write_text(".env*\n")
    (tmp_path / "gitconfig").write_text(f"[core]\nexcludesFile = {tmp_path / 'ignore'}\n")
    env = os.environ | {"GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig")}
    project = tmp_path / "project"
    version = ["--vcs-ref", f"v{start_at}"]
    run(COPIER, "copy", "--defaults", *version, repository, project, cwd=tmp_path, env=env)
    with (project / ".env.example").open("a") as file:
        file.write("# OUR_KEY=\n")
    run("git", "init", "--quiet", cwd=project)
    if start_at == "0.4.0":
        assert run("git", "check-ignore", ".env.example", cwd=project, env=env) == ".env.example\n"
        run("git", "add", "--force", ".env.example", cwd=project, env=env)
    run("git", "add", "--all", cwd=project, env=env)
    run("git", *AUTHOR, "commit", "--quiet", "--message", "Start", cwd=project)
    run(COPIER, "update", "--defaults", cwd=project, env=env)
    text = (project / ".env.example").read_text()
    assert text.startswith("# Copy this to .env")
    assert text.endswith("# OUR_KEY=\n")
