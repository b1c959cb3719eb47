"""What SECURITY.md of a project says can be looked up in that project."""

import re
from pathlib import Path

from workspace import ROOT, Render

TEXT = (ROOT / "template/SECURITY.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| Threat")
]


def test_each_threat_has_a_guard_or_is_left_to_somebody() -> None:
    assert len(ROWS) > 15
    for threat, guard, _, left in ROWS:
        assert guard or left, threat


def test_each_test_that_is_named_is_there(render: Render) -> None:
    tests = {path.name for path in (render() / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", TEXT)) <= tests


def test_each_setting_that_is_named_is_one(render: Render) -> None:
    """Or a caller's field, a model, a metric."""
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", TEXT)) - {"limit_storage_up"}
    code = "".join(path.read_text("utf-8") for path in (Path(render()) / "app").glob("*.py"))
    assert {name for name in named if not re.search(rf"\b{name}\b", code)} == set()
    assert {"max_in_flight", "image_hosts", "trusted_proxies"} <= named
