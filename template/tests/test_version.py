"""`python -m app version` tells the template's release, and `--check` whether a security fix is missing."""

from pathlib import Path

import pytest

from app import TEMPLATE_VERSION
from app.__main__ import main
from app.version import missing_security_fixes

CHANGELOG = """# Changelog

## [Unreleased]

### Security

- Not released, so not missing.

## [0.10.0] - 2026-05-01

### Security

- A fix.

## [0.9.0] - 2026-04-01

### Added

- What the section ### Security does.

## [0.2.0] - 2026-03-01

### Fixed

- A bug.

### Security

- An earlier fix.
"""


@pytest.mark.parametrize(
    ("version", "missing"),
    [("0.1.0", ["0.2.0", "0.10.0"]), ("0.2.0", ["0.10.0"]), ("0.9.0", ["0.10.0"]), ("0.10.0", []), ("1.0.0", [])],
)
def test_later_releases_with_a_security_section_are_missing(version: str, missing: list[str]) -> None:
    assert missing_security_fixes(CHANGELOG, version) == missing


def changelog(folder: Path, released: str) -> str:
    path = folder / "CHANGELOG.md"
    path.write_text(f"# Changelog\n\n## [{released}] - 2026-05-01\n\n### Security\n\n- A fix.\n", "utf-8")
    return str(path)


def test_the_command_tells_the_release(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{TEMPLATE_VERSION}\n"


def test_a_missing_security_fix_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--check", changelog(tmp_path, "9999.0.0")]) == 1
    assert capsys.readouterr().err == "Security fixes are missing, of 9999.0.0: run copier update.\n"


def test_nothing_missing_is_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--check", changelog(tmp_path, TEMPLATE_VERSION)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["nowhere.md", "https://127.0.0.1:1/CHANGELOG.md", "http://127.0.0.1:1/CHANGELOG.md"])
def test_a_changelog_that_can_not_be_read_is_exit_code_2(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither 0 nor 1: nothing is known."""
    assert main(["version", "--check", place]) == 2
    assert capsys.readouterr().err.startswith("The changelog can't be read: ")


def test_a_file_that_is_not_text_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "CHANGELOG.md"
    path.write_bytes(b"\xff\xfe")
    assert main(["version", "--check", str(path)]) == 2
    assert capsys.readouterr().err == "The changelog can't be read: UnicodeDecodeError\n"
