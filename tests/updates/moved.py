"""Files that releases moved or removed: the list in copier.yml, the pointers, and what has to be said of each."""

import re
from pathlib import Path
from typing import NamedTuple

import jinja2
import yaml

from updates.releases import releases
from workspace import ROOT, run

POINTER = ROOT / "template/{% yield pointer from moved %}{{ pointer[0] }}{% endyield %}.jinja"
REMOVED = "removed"


class Moved(NamedTuple):
    """An entry of the list: the old path, the release without the file, and the new path or "removed"."""

    old: str
    release: str
    new: str


def moved(configuration: str) -> list[Moved]:
    """Return the list of a copier.yml. Releases before 0.5.0 had none."""
    questions = next(yaml.safe_load_all(configuration))
    return [Moved(*entry) for entry in questions.get("moved", {"default": []})["default"]]


MOVED = moved((ROOT / "copier.yml").read_text("utf-8"))


def pointers(start: str) -> dict[str, bytes]:
    """Return the pointers that an update to the newest release brings a project that was started at a release.

    A project that was started when a file was already gone has no pointer to it, and gets none later.
    """
    known = {release.version: release.commit for release in releases()}
    listed = moved(run("git", "show", f"{known[start]}:copier.yml", cwd=ROOT)) if start in known else MOVED
    gone = {entry.old for entry in listed}
    return {entry.old: pointer(entry) for entry in MOVED if entry.old not in gone}


def pointer(entry: Moved) -> bytes:
    """Return the pointer that stands at the old path of a file."""
    template = jinja2.Template(POINTER.read_text("utf-8"), keep_trailing_newline=True)
    text: str = template.render(pointer=entry)
    return text.encode()


def check_moves(repository: Path) -> None:
    """Check that whatever file a tagged release had is still there, or has a pointer and is named in the CHANGELOG.

    Raises:
        AssertionError: a file is gone without them.
    """
    entries = {entry.old: entry for entry in moved((repository / "copier.yml").read_text("utf-8"))}
    changelog = (repository / "CHANGELOG.md").read_text("utf-8")
    present = {rendered(path.relative_to(repository / "template")) for path in (repository / "template").rglob("*")}
    once: set[str] = set()
    for tag in run("git", "tag", cwd=repository).split():
        listed = run("git", "ls-tree", "-r", "-z", "--name-only", f"{tag}:template", cwd=repository).split("\0")
        once |= {rendered(Path(name)) for name in listed if name and "{" not in name}
    gone = sorted(once - present)
    without_pointer = [path for path in gone if path not in entries]
    assert not without_pointer, f"without an entry under `moved` in copier.yml: {without_pointer}"
    untold = [path for path in gone if not names(upgrading(changelog, entries[path].release), path)]
    assert not untold, f'not named under "Upgrading" in CHANGELOG.md: {untold}'
    back = sorted(entries.keys() & present)
    assert not back, f"listed under `moved` in copier.yml, but still there: {back}"
    nowhere = [entry.new for entry in entries.values() if entry.new not in present | {REMOVED}]
    assert not nowhere, f"new paths under `moved` in copier.yml that don't exist: {nowhere}"


def rendered(path: Path) -> str:
    """Return the path that a file of the template has in a project."""
    return path.as_posix().removesuffix(".jinja")


def upgrading(changelog: str, release: str) -> str:
    """Return what a release's entry says under "Upgrading"; before the release, what is written under "Unreleased"."""
    heading = f"## [{release}]" if f"\n## [{release}]" in changelog else "## [Unreleased]"
    entry = changelog.partition(f"\n{heading}")[2].partition("\n## [")[0]
    return entry.partition("### Upgrading\n")[2].partition("\n### ")[0]


def names(text: str, path: str) -> bool:
    """Tell whether a text names a file: by its path, as a module, or by a folder that it was in, but not a top one."""
    folders = [f"{folder.as_posix()}/" for folder in Path(path).parents if len(folder.parts) > 1]
    called = [path, path.removesuffix(".py").replace("/", "."), *folders]
    return any(re.search(rf"`{re.escape(name)}`", text) for name in called)
