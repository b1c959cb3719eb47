"""Make a release: python release.py 0.2.0

A release is the commit that changes the version, with its entry in CHANGELOG.md. What stands under "Unreleased" becomes
that entry; the template's own version goes into template/app/__init__.py, so that a project knows where it is at.
"""

import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent
UNRELEASED = "## [Unreleased]\n"
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
PLACES = {
    "pyproject.toml": re.compile(r'(?m)^(version = )"[^"]+"'),
    "template/app/__init__.py": re.compile(r'(?m)^(TEMPLATE_VERSION = )"[^"]+"'),
}


class Refusal(Exception):
    """There is a reason not to release."""


def main() -> int:
    """Release the version that the command line names; return the exit code."""
    if len(sys.argv) != 2:
        print("Usage: python release.py X.Y.Z", file=sys.stderr)
        return 2
    try:
        release(sys.argv[1], ROOT)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


def release(version: str, root: Path) -> None:
    """Commit a release.

    Args:
        version: X.Y.Z, higher than the last one.
        root: the repository.

    Raises:
        Refusal: the tree is dirty, the version is not higher, or CHANGELOG.md has nothing to say.
    """
    if not VERSION.fullmatch(version):
        raise Refusal(f"{version} is not X.Y.Z")
    if git(root, "status", "--porcelain"):
        raise Refusal("Commit or stash first: a release holds nothing but its version and its entry.")
    found = re.search(r'(?m)^version = "([^"]+)"', (root / "pyproject.toml").read_text("utf-8"))
    current = found[1] if found else "0.0.0"
    if numbers(version) <= numbers(current):
        raise Refusal(f"{version} is not higher than {current}")
    changed = {root / "CHANGELOG.md": with_entry((root / "CHANGELOG.md").read_text("utf-8"), version)}
    for name, place in PLACES.items():
        changed[root / name], count = place.subn(rf'\g<1>"{version}"', (root / name).read_text("utf-8"), count=1)
        if count != 1:
            raise Refusal(f"{name} has no version")
    for path, text in changed.items():
        path.write_text(text, "utf-8")
    uv = shutil.which("uv")
    subprocess.run([*([uv] if uv else [sys.executable, "-m", "uv"]), "lock", "--quiet"], cwd=root, check=True)
    git(root, "commit", "--quiet", "--all", "--message", f"Release {version}")


def with_entry(changelog: str, version: str) -> str:
    """Return a changelog in which the unreleased changes have become a version's entry.

    Raises:
        Refusal: there are none.
    """
    before, heading, after = changelog.partition(UNRELEASED)
    changes = re.split(r"(?m)^## \[", after)[0]
    if not heading or not re.search(r"(?m)^- ", changes):
        raise Refusal('CHANGELOG.md has no change under "Unreleased".')
    return f"{before}{UNRELEASED}\n## [{version}] - {datetime.now(UTC).date()}\n{after}"


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, to compare."""
    return tuple(int(part) for part in version.split(".")[:3])


def git(root: Path, *arguments: str) -> str:
    """Run git; return what it prints."""
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
