"""With one worker or several, `python -m app` is one service: its numbers, limits and end, and a worker's crash."""

import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from operations.servers import (
    TEXT,
    Behaviour,
    Call,
    Process,
    Program,
    Stub,
    accepts,
    free_port,
    session,
    text_of,
    valkey_server,
    wait_until,
)

WORKERS = 4
KEY = session.KEYS["web"]


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[str]:
    """The address of a limit storage."""
    port = free_port()
    command = (valkey_server(), "--port", str(port), "--save", "", "--appendonly", "no")
    with Program(*command, ready=lambda: accepts(port), cwd=tmp_path):
        yield f"async+valkey://127.0.0.1:{port}"


@pytest.fixture
def stub() -> Iterator[Any]:
    with Stub() as stub:
        yield stub


@contextlib.contextmanager
def serving(stub: Any, workers: int, **settings: Any) -> Iterator[Any]:
    """Run the service with the session's settings, but for those given, until the test ends."""
    env = {
        f"APP_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in (session.settings(stub) | {"log_format": "json"} | settings).items()
    }
    with Process("--workers", str(workers), env=env) as process:
        try:
            wait_until(lambda: started(process) == workers)
            yield process
        finally:
            process.terminate()
            code = process.wait(30)
        assert code == 0


def started(process: Any) -> int:
    """Return how many workers have started so far."""
    return sum("Application startup complete" in line for line in process.lines)


def workers_of(process: Any) -> set[int]:
    """Return the ids of the processes that serve (Linux)."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return {int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def status(url: str, path: str) -> tuple[int, str | None]:
    """Return the status of a GET, and its Retry-After."""
    try:
        with urllib.request.urlopen(url + path, timeout=30) as response:  # noqa: S310 - http, on this machine
            return response.status, response.headers["Retry-After"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Retry-After"]


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_a_session_shows_every_number_that_it_implies(stub: Any, valkey: str, workers: int) -> None:
    with serving(stub, workers, limit_storage=valkey) as process:
        session.play(process.url, stub)
        expected = session.implied()
        assert session.shown_once_settled(process.url, expected) == expected
        for _ in range(2 * workers):  # whichever worker is asked
            assert session.shown(process.url) == expected


def test_workers_count_a_callers_calls_together(stub: Any, valkey: str) -> None:
    callers = session.settings(stub)["callers"]
    callers["web"]["requests_per_minute"] = 20
    with serving(stub, WORKERS, limit_storage=valkey, callers=callers) as process, ThreadPoolExecutor(10) as pool:

        def ask(_: int) -> tuple[int, str]:
            with Call(process.url, KEY, model="spare") as call:
                return call.status, call.headers["x-ratelimit-limit-requests"]

        answers = list(pool.map(ask, range(60)))
        assert sorted(answers) == [(200, "20")] * 20 + [(429, "20")] * 40
        decisions = session.shown(process.url)
        assert decisions["limiter_decisions_total", "admitted", "caller"] == 20
        assert decisions["limiter_decisions_total", "refused", "caller"] == 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_open_streams_finish_and_sends_new_work_elsewhere(stub: Any, number: signal.Signals) -> None:
    stub.default = Behaviour(repeat=10, pace=0.04)  # 71 events: about three seconds
    with serving(stub, WORKERS) as process, contextlib.ExitStack() as calls:
        open_calls = [calls.enter_context(Call(process.url, KEY, model="spare", stream=True)) for _ in range(40)]
        begun = [next(call.events) for call in open_calls]
        assert status(process.url, "/ready") == (200, None)
        process.terminate(number)
        wait_until(lambda: {status(process.url, "/ready") for _ in range(8)} == {(503, "1")}, seconds=2)
        with Call(process.url, KEY, model="spare", stream=True) as late:
            assert (late.status, late.json["error"]["code"]) == (503, "draining")
            assert (late.headers["Retry-After"], late.headers["Connection"]) == ("1", "close")
        said = [text_of([first, *call.events]) for first, call in zip(begun, open_calls, strict=True)]
        assert said == [TEXT * 10] * 40
        assert process.wait(30) == 0


def test_a_worker_that_crashes_is_replaced_and_what_it_counted_is_kept(stub: Any) -> None:
    with serving(stub, 2) as process:
        first = workers_of(process)
        assert len(first) == 2
        for _ in range(10):
            with Call(process.url, KEY, model="spare") as call:
                assert call.status == 200
        stub.default = Behaviour(stall_after=3)
        with contextlib.ExitStack() as calls:
            for _ in range(10):
                next(calls.enter_context(Call(process.url, KEY, model="spare", stream=True)).events)
            assert session.shown(process.url)["llm_calls_in_flight", "spare"] == 10
            os.kill(max(first, key=open_files), signal.SIGKILL)  # the one that has calls, if another has none
            wait_until(lambda: len(workers_of(process)) == 2 and workers_of(process) != first)
            wait_until(lambda: started(process) == 3)
            still_open = session.shown(process.url)["llm_calls_in_flight", "spare"]
            assert still_open < 10, "the calls of the dead are over"
        wait_until(lambda: session.shown(process.url)["llm_calls_in_flight", "spare"] == 0)
        stub.default = Behaviour()
        for _ in range(10):
            with Call(process.url, KEY, model="spare") as call:
                assert call.status == 200
        assert session.shown(process.url)["llm_upstream_calls_total", "spare", "ok"] == 20
