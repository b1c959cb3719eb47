"""From every release: a team's edits are still there, on top of what a fresh copy is.

With all options and with none; from the newest also with GitLab, which is not among all of them. The nightly run takes
every option from every release (FULL_MATRIX).
"""

import pytest

from updates.conftest import Start
from updates.projects import OPTIONS, Fresh, check_with_edits
from updates.releases import VERSIONS
from workspace import FULL_MATRIX

CELLS = [
    (version, options)
    for version in VERSIONS
    for options in OPTIONS
    if FULL_MATRIX or options in ("all off", "all on") or (version, options) == (VERSIONS[-1], "GitLab")
]


@pytest.mark.parametrize(("version", "options"), CELLS)
def test_an_update_keeps_every_edit(start: Start, fresh: Fresh, version: str, options: str) -> None:
    """All at once, as a team that has lived with its project for a while has made them."""
    check_with_edits(start(version, OPTIONS[options]), OPTIONS[options], fresh)
