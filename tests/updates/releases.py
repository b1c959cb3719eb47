"""The releases that this repository has made, and a repository in which they are published."""

import shutil
import tomllib
from pathlib import Path
from typing import NamedTuple

from workspace import ROOT, run, snapshot

AUTHOR = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")


class Release(NamedTuple):
    """A release: its version, and the commit that made it."""

    version: str
    commit: str


def releases() -> list[Release]:
    """Return the commits that changed the version in pyproject.toml, oldest first. 0.0.0 was no release."""
    found: list[Release] = []
    changes = run("git", "log", "--reverse", "--format=%H", "-G^version = ", "--", "pyproject.toml", cwd=ROOT)
    for commit in changes.split():
        version = tomllib.loads(run("git", "show", f"{commit}:pyproject.toml", cwd=ROOT))["project"]["version"]
        if version != (found[-1].version if found else "0.0.0"):
            found.append(Release(version, commit))
    return found


VERSIONS = [release.version for release in releases()]


def publish(destination: Path) -> Path:
    """Clone this repository and tag its releases, as it is published; the working tree is the newest of them."""
    run("git", "clone", "--quiet", "--no-tags", ROOT, destination, cwd=ROOT)
    for release in releases():
        tag(destination, release.version, release.commit)
    for path in destination.iterdir():
        if path.is_dir() and path.name != ".git":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    snapshot(destination)
    commit(destination, "What stands in the working tree")
    tag(destination, newest())
    return destination


def newest() -> str:
    """Return the version under which the working tree is published: the one after the last release."""
    return after(VERSIONS[-1])


def after(version: str) -> str:
    """Return the next version."""
    major, minor, patch = version.split(".")
    return f"{major}.{minor}.{int(patch) + 1}"


def commit(repository: Path, message: str) -> None:
    """Commit everything that stands in a repository's working tree."""
    run("git", "add", "--all", cwd=repository)
    run("git", *AUTHOR, "commit", "--quiet", "--allow-empty", "--message", message, cwd=repository)


def tag(repository: Path, version: str, commit: str = "HEAD") -> None:
    """Tag a release."""
    run("git", "tag", f"v{version}", commit, cwd=repository)
