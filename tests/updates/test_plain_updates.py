"""What nobody has edited becomes what a fresh copy is: from the first release and the newest, nightly from every one.

With all options and with none. That it does so with each of them alone is part of test_edited_updates.py, which takes a
team's edits to a fresh copy for comparison.
"""

import pytest

from updates.conftest import Start
from updates.projects import OPTIONS, Fresh, check_without_edits, run_by_its_tests
from updates.releases import VERSIONS
from workspace import FULL_MATRIX


@pytest.mark.parametrize("options", ["all off", "all on"])
@pytest.mark.parametrize("version", VERSIONS if FULL_MATRIX else [VERSIONS[0], VERSIONS[-1]])
def test_an_update_without_edits_gives_a_fresh_copy(start: Start, fresh: Fresh, version: str, options: str) -> None:
    check_without_edits(start(version, OPTIONS[options]), OPTIONS[options], fresh)


@pytest.mark.parametrize("options", OPTIONS)
def test_options_make_no_difference_to_a_projects_own_tests(fresh: Fresh, options: str) -> None:
    """So those of test_projects.py, and ruff and mypy in test_style.py, run on all that plain updates lead to."""
    assert run_by_its_tests(fresh(OPTIONS[options])) == run_by_its_tests(fresh({}))
