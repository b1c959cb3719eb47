"""From every release, with every option: a team's edits are still there, on top of what a fresh copy is."""

import pytest

from updates.conftest import Start
from updates.projects import OPTIONS, Fresh, check_with_edits
from updates.releases import VERSIONS


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("version", VERSIONS)
def test_an_update_keeps_every_edit(start: Start, fresh: Fresh, version: str, options: str) -> None:
    """All at once, as a team that has lived with its project for a while has made them."""
    check_with_edits(start(version, OPTIONS[options]), OPTIONS[options], fresh)
