"""What README and the report show of the benchmarks is what the last run measured."""

import sys
from pathlib import Path
from typing import Any

import pytest

from workspace import ROOT

RESULTS = ROOT / "benchmarks/results"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmarks' own modules: what writes a report, and the record of the committed run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from harness import record, report

    yield report, record.read(RESULTS / "results.json")
    for name in [name for name in sys.modules if name.partition(".")[0] == "harness"]:
        del sys.modules[name]


def test_the_readme_quotes_the_committed_run(harness: Any) -> None:
    report, record = harness
    assert report.quotation(record) in (ROOT / "README.md").read_text("utf-8")


def test_the_report_and_its_plots_are_made_from_the_committed_run(harness: Any, tmp_path: Path) -> None:
    report, record = harness
    report.write(record, tmp_path)
    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text("utf-8") for path in RESULTS.iterdir()}


def test_the_committed_run_was_of_a_clean_tree_with_five_rounds(harness: Any) -> None:
    _, record = harness
    assert "changes" not in record.commit
    assert record.rounds >= 5
