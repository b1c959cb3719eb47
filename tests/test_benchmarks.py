"""The benchmarks measure what they say, and README and the reports show what the last runs measured."""

import asyncio
import importlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workspace import ROOT

RESULTS = ROOT / "benchmarks/results"
MODULES = ("instructions", "load", "quick", "record", "report", "requests", "scale", "targets", "upstream")
MACHINES = sorted(path.parent.name for path in RESULTS.glob("*/results.json"))


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmarks' own modules."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield SimpleNamespace(**{name: importlib.import_module(f"harness.{name}") for name in MODULES})
    for name in [name for name in sys.modules if name.partition(".")[0] == "harness"]:
        del sys.modules[name]


# --- What is measured -------------------------------------------------------------------------------------------------


class Relay(threading.Thread):
    """A server under test that passes bytes on as it finds them, and takes its time before each read.

    Args:
        upstream: the port that it passes them on to.
        seconds: how long it takes.
    """

    def __init__(self, upstream: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.upstream, self.seconds = upstream, seconds
        self.reads: list[bytes] = []
        self.listening = threading.Event()

    def run(self) -> None:
        asyncio.run(self.serve())

    async def serve(self) -> None:
        self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self.passed, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            self.listening.set()
            await self.ended.wait()

    async def passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        up_writer.write(await reader.read(65536))
        data = b"none yet"
        while data and not data.endswith(b"0\r\n\r\n"):
            time.sleep(self.seconds)  # noqa: ASYNC251 - it is slow, and does nothing else meanwhile
            data = await up_reader.read(65536)
            self.reads.append(data)
            writer.write(data)
        for each in (writer, up_writer):
            each.close()
            await each.wait_closed()
        self.ended.set()


async def one_stream(harness: Any, seconds: float, dialect: str, each: int, pace: int = 0) -> tuple[list[bytes], Any]:
    stub = harness.upstream.Stub()
    await stub.start()
    relay = Relay(stub.port, seconds)
    relay.start()
    relay.listening.wait()
    request = harness.requests.Kind(dialect, "m", {}, {}).stream(each=each, pace=pace)
    load = harness.load.ClosedLoop(relay.port, request, 1, stub)
    await load.connect()
    try:
        answers = await load.run(0)
    finally:
        stub.close()
        await asyncio.to_thread(relay.join)
    return relay.reads, answers


@pytest.mark.parametrize("seconds", [0, 0.003], ids=["fast", "slow"])
@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_a_server_reads_every_event_by_itself_however_slow_it_is(harness: Any, dialect: str, seconds: float) -> None:
    reads, answers = asyncio.run(one_stream(harness, seconds, dialect, 1))
    assert len(reads) == 100
    assert [read.count(b"~") for read in reads[:-1]] == [1] * 99
    assert (answers.packets_in, answers.packets_out) == (100, 100)


@pytest.mark.parametrize("seconds", [0, 0.003], ids=["fast", "slow"])
def test_a_server_reads_25_events_at_a_time_however_slow_it_is(harness: Any, seconds: float) -> None:
    reads, answers = asyncio.run(one_stream(harness, seconds, "chat", 25))
    assert [read.count(b"~") for read in reads] == [25, 25, 25, 24]
    assert (answers.packets_in, answers.packets_out) == (4, 4)


def test_at_a_steady_pace_a_slow_server_does_find_several_events_in_one_read(harness: Any) -> None:
    reads, answers = asyncio.run(one_stream(harness, 0.02, "chat", 1, pace=500))
    assert len(reads) < answers.packets_in == 100


def test_a_stream_without_its_end_is_no_answer(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = harness.upstream.packets_of
    monkeypatch.setattr(harness.upstream, "packets_of", lambda *args: [*whole(*args)[:-1], b"0\r\n\r\n"])
    with pytest.raises(harness.load.UnexpectedAnswer, match="99 events of 99, ending in"):
        asyncio.run(one_stream(harness, 0, "chat", 1))


@pytest.mark.skipif(not shutil.which("perf"), reason="perf is not installed")
def test_perf_counts_what_a_process_does_and_says_where_it_can_not(harness: Any) -> None:
    with harness.instructions.count([os.getpid()], event="task-clock") as counted:
        sum(range(1_000_000))
    assert len(counted) == 1
    assert harness.instructions.number("<not supported>,,instructions,0,100.00,,\n") is None
    assert harness.instructions.number("7261441,,instructions,923000,100.00,,\n") == 7261441


# --- What is compared -------------------------------------------------------------------------------------------------


def compared(harness: Any, committed: list[float], now: list[float]) -> bool:
    target = harness.targets.CHECKED[0]

    def samples(ratios: list[float]) -> dict[str, dict[str, list[float]]]:
        return {"ours": {target.measured[1]: ratios}, "floor": {target.against[1]: [1.0] * len(ratios)}}

    record = harness.record.Record("", "", {}, 0, [], [], {}, samples(committed), {})
    [found] = harness.quick.compare(samples(now), [record], [target])
    return bool(found.worse)


def test_a_ratio_is_worse_only_beyond_the_committed_spread_and_a_margin(harness: Any) -> None:
    committed = [1.9, 2.0, 2.3]
    assert not compared(harness, committed, [2.5, 2.55, 9.0])
    assert compared(harness, committed, [2.0, 2.7, 2.7])


def test_the_processor_is_told_apart_from_others_of_the_same_name(harness: Any) -> None:
    cpuinfo = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    machine = {"Processor:": harness.record.processor(cpuinfo), "Python": "3.13"}
    assert harness.record.folder(machine).name == "amd-epyc-family-25-model-17-python-3-13"


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_the_readme_quotes_the_committed_runs(harness: Any) -> None:
    assert harness.report.quotation(harness.record.read_all()) in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("machine", MACHINES)
def test_a_report_and_its_plots_are_made_from_the_committed_run(harness: Any, tmp_path: Path, machine: str) -> None:
    [record] = [each for each in harness.record.read_all() if harness.record.folder(each.machine).name == machine]
    harness.report.write(record, tmp_path)
    if (RESULTS / machine / "scale.json").exists():
        harness.scale.write(harness.scale.read(RESULTS / machine / "scale.json"), tmp_path)
    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text("utf-8") for path in (RESULTS / machine).iterdir()}


def test_committed_runs_were_of_a_clean_tree_with_five_rounds(harness: Any) -> None:
    for record in harness.record.read_all():
        assert "changes" not in record.commit
        assert record.rounds >= 5


def test_no_committed_ratio_is_below_what_theory_allows(harness: Any) -> None:
    """We read and write as many packets as the floor, by the same server: half of what the floor does at the least.

    The other half is aiohttp's client, which we do without.
    """
    targets = [*harness.targets.DIRECT, *harness.targets.PACED, harness.targets.MEMORY]
    for record in harness.record.read_all():
        for target in targets:
            ratio = target.ratio(record.samples)
            assert ratio is None or ratio.median >= 0.5, target.title
