"""This repository, the commands that tests run, and the files that they look at."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FULL_MATRIX = "FULL_MATRIX" in os.environ
"""Whether to run what takes long and seldom finds anything, too: the nightly workflow does."""

Render = Callable[..., Path]
Install = Callable[[Path], Path]
CheckTypes = Callable[..., str]
Once = Callable[[object, Callable[[], object]], None]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command to its end, and return what it printed; fail the test with that text if the command fails."""
    done = subprocess.run(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def configuration() -> dict[str, Any]:
    """Return what copier.yml says, without the further documents that a fork may add (docs/forking.md)."""
    documents = yaml.safe_load_all((ROOT / "copier.yml").read_text("utf-8"))
    return dict(next(documents))


def questions() -> dict[str, Any]:
    """Return what copier.yml asks, without the values that it computes."""
    names = {name: value for name, value in configuration().items() if not name.startswith("_")}
    return {name: value for name, value in names.items() if value.get("when") is not False}


def debian(program: str, package: str) -> str:
    """Return where a program of Debian's is. CI installs it, and fails without; elsewhere its tests are skipped."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is missing: apt-get install {package}")
    return found


def tree(project: Path) -> dict[str, bytes]:
    """Return every file of a project by its path."""
    return {str(path.relative_to(project)): path.read_bytes() for path in sorted(project.rglob("*")) if path.is_file()}


def snapshot(destination: Path) -> Path:
    """Copy what git tracks or would track, so that uncommitted edits are tested and ignored files are not."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, destination / name)
    return destination
