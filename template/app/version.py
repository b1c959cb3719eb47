"""Which release of the template this project is at, and whether a security fix is missing."""

import re
import urllib.request
from pathlib import Path

from app import TEMPLATE_VERSION

ENTRY = re.compile(r"^## \[(\d+\.\d+\.\d+)\][^\n]*\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
FETCH_WITHIN = 10
"""Seconds that a changelog's server gets."""


def missing_security_fixes(changelog: str, version: str = TEMPLATE_VERSION) -> list[str]:
    """Return the releases after `version` whose entry has a "Security" section (Keep a Changelog), oldest first."""
    releases = [(found[1], found[2]) for found in ENTRY.finditer(changelog)]
    return sorted(
        (name for name, text in releases if _numbers(name) > _numbers(version) and "\n### Security" in f"\n{text}"),
        key=_numbers,
    )


def read_changelog(place: str) -> str:
    """Return the text of a changelog.

    Args:
        place: a file's path, or an https address.

    Raises:
        OSError: it can't be read.
    """
    if not place.startswith("https://"):
        return Path(place).read_text(encoding="utf-8")
    with urllib.request.urlopen(place, timeout=FETCH_WITHIN) as answer:  # noqa: S310 - https only
        return str(answer.read().decode())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
