"""From every release: a team's edits are still there, on top of what a fresh copy is.

With every option from the newest release, with all and with none from those before; the nightly run takes every option
from every release (FULL_MATRIX).
"""

import os

import pytest

from updates.conftest import Start
from updates.projects import OPTIONS, Fresh, check_with_edits
from updates.releases import VERSIONS

CELLS = [
    (version, options)
    for version in VERSIONS
    for options in OPTIONS
    if version == VERSIONS[-1] or options in ("all off", "all on") or os.environ.get("FULL_MATRIX")
]


@pytest.mark.parametrize(("version", "options"), CELLS)
def test_an_update_keeps_every_edit(start: Start, fresh: Fresh, version: str, options: str) -> None:
    """All at once, as a team that has lived with its project for a while has made them."""
    check_with_edits(start(version, OPTIONS[options]), OPTIONS[options], fresh)
