"""Whatever is logged, and by whomever, is one line of JSON that shows what it says."""

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from datetime import datetime
from typing import Any

import pytest
import structlog
from starlette.testclient import TestClient

from app.main import create_app
from app.telemetry.logs import configure_logs
from app.telemetry.output import Output
from tests.conftest import MakeSettings
from tests.serving import PROJECT, environment, free_port

CANARY = "pw-canary-0123456789"


@pytest.fixture(autouse=True)
def logging_given_back() -> Any:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200f", "\u2028", "\x9b", "\u061c"])
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_characters_that_change_what_a_terminal_shows_are_escaped(
    settings: MakeSettings, capsys: pytest.CaptureFixture[str], log_format: str, character: str
) -> None:
    configure_logs(settings(log_format=log_format))
    structlog.get_logger("app").error(f"grüße{character}1", path=f"/{character}", more=[character])
    logging.getLogger("theirs").error("from %s", character)
    said = capsys.readouterr().out
    assert character not in said
    assert "grüße" in said
    assert f"\\u{ord(character):04x}" in said or repr(character).strip("'") in said
    if log_format == "json":
        ours, theirs = map(json.loads, said.splitlines())
        assert (ours["event"], theirs["event"]) == (f"grüße{character}1", f"from {character}")


@pytest.mark.parametrize("character", ["\x1b", "\x00", "\r", "\n", "\x7f", "\u202e", "\U000e0041"])
def test_the_console_shows_no_control_wherever_it_stands(
    settings: MakeSettings, capsys: pytest.CaptureFixture[str], character: str
) -> None:
    class Theirs:
        def __repr__(self) -> str:
            return f"<{character}>"

    configure_logs(settings())
    log = structlog.get_logger("app")
    event = f"ours{character}"
    log.error(event, path=f"/{character}[2Jevil", **{f"key{character}": 1}, theirs=Theirs(), more=[character])
    logging.getLogger("theirs").error("from %s", character)
    try:
        raise ValueError(f"grüße{character}1")
    except ValueError:
        log.exception("failed", stack=f"File\n  line{character}")
    said = capsys.readouterr().out
    escaped = repr(character).strip("'")
    assert said.count(escaped) >= (6 if character == "\n" else 8)  # a traceback has its lines
    lines = [line for line in said.split("\n") if line]
    assert all(line.isprintable() for line in lines)
    assert ["ours" in lines[0], "from" in lines[1], "failed" in lines[2]] == [True] * 3


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"\xff", "\ud800", object(), {1: {2}}, ValueError("x"), 10**400]
)
def test_every_value_becomes_json(settings: MakeSettings, capsys: pytest.CaptureFixture[str], value: Any) -> None:
    configure_logs(settings(log_format="json"))
    structlog.get_logger("app").error("with a value", value=value)
    [line] = capsys.readouterr().out.splitlines()
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["event"] == "with a value"


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("given", ["yesterday", 7, datetime(2026, 11, 29)])  # noqa: DTZ001 - as own code may
def test_a_line_may_tell_a_time_of_its_own(
    settings: MakeSettings, capsys: pytest.CaptureFixture[str], log_format: str, given: Any
) -> None:
    configure_logs(settings(log_format=log_format))
    structlog.get_logger("app").error("measured", timestamp=given)
    [line] = capsys.readouterr().out.splitlines()
    assert str(given).replace(" ", "T") in line


def test_no_library_logs_the_user_of_an_address(settings: MakeSettings, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(settings(log_format="json"))
    logging.getLogger("opentelemetry.sdk").error("can't export to %s", f"https://me:{CANARY}@collector:4318/v1")
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "can't export to https://collector:4318/v1"


UNCAUGHT = f'''
import asyncio, sys, threading, warnings
from app.environment import load_settings
from app.http.serving import _set_up_logs
_set_up_logs(load_settings(log_format="json"))
class Faulty:
    def __del__(self):
        raise ValueError("{CANARY}")
async def forgotten():
    pass
async def failing():
    asyncio.get_running_loop().call_soon(int, "{CANARY}")
    await asyncio.sleep(0)
warnings.warn("a warning")
thread = threading.Thread(target=int, args=("{CANARY}",)); thread.start(); thread.join()
Faulty()
forgotten()
asyncio.run(failing())
int("{CANARY}")
'''


def test_what_nobody_catches_is_json_without_its_message() -> None:
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", UNCAUGHT], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (1, "")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["event"] for line in lines].count("uncaught") == 3
    assert {line.get("logger") for line in lines} == {None, "py.warnings", "asyncio"}
    assert {line["error"] for line in lines if line["event"] == "uncaught"} == {"ValueError"}
    assert CANARY not in ended.stdout


def test_a_module_that_can_not_be_imported_is_named(tmp_path: Any) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['fastapi'] = None")
    ended = subprocess.run(
        [sys.executable, "-m", "app", "--workers", "2"],
        cwd=PROJECT,
        env=environment(PYTHONPATH=str(tmp_path), APP_LOG_FORMAT="json", APP_PORT=str(free_port()), APP_METRICS="1"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "")
    [line] = map(json.loads, ended.stdout.splitlines())
    assert (line["event"], line["error"]) == ("uncaught", "ModuleNotFoundError")
    assert "fastapi" in line["reason"]


def test_a_line_longer_than_a_pipe_takes_at_once_is_written_whole() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as received, os.fdopen(writer, "w") as stdout:
        before, sys.stdout = sys.stdout, stdout
        try:
            Output().write("x" * 40_000 + "\n")
        finally:
            sys.stdout = before
        assert received.readline() == b"x" * 40_000 + b"\n"


def test_many_lines_are_cut_between_two_of_them_where_a_pipe_takes_no_more_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that the lines of other processes come between them, and not into them."""
    written: list[bytes] = []

    def write(_: int, data: bytes) -> int:
        written.append(data)
        return len(data)

    lines = "".join(f"{number} {'x' * 600}\n" for number in range(50))
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"), os.fdopen(writer, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(os, "write", write)
        Output().write(lines)
    assert b"".join(written).decode() == lines
    assert all(piece.endswith(b"\n") and len(piece) <= select.PIPE_BUF for piece in written)
    assert len(written) < 15


def test_every_one_of_many_lines_that_are_lost_is_counted() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as received, os.fdopen(writer, "w") as stdout:
        before, sys.stdout = sys.stdout, stdout
        try:
            output = Output()
            output.write(("x" * 99 + "\n") * 1000)
            arrived = os.read(received.fileno(), 1_000_000).splitlines()
            output.write("again\n")
            told, again = os.read(received.fileno(), 1_000_000).splitlines()
        finally:
            sys.stdout = before
    assert again == b"again"
    assert json.loads(told)["lines"] == 1000 - len(arrived)


def test_lines_whose_loss_has_been_told_are_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    room = [0]

    def write(_: int, data: bytes) -> int:
        if not room[0]:
            raise BlockingIOError
        room[0] -= 1
        written.append(data)
        return len(data)

    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"), os.fdopen(writer, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(os, "write", write)
        output = Output()
        for may_write in (0, 1, 3, 100):
            room[0] = may_write
            output.write("a line\n" * 2000)
    lines = b"".join(written).splitlines()
    lost = sum(json.loads(line)["lines"] for line in lines if b"lost" in line)
    assert lines.count(b"a line") + lost == 4 * 2000


def test_uvicorns_own_format_gives_way(settings: MakeSettings, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("uvicorn", "uvicorn.access"):
        logging.getLogger(name).addHandler(logging.StreamHandler(sys.stdout))
        logging.getLogger(name).propagate = False
    with TestClient(create_app(settings(log_format="json"))):
        logging.getLogger("uvicorn.error").error("theirs")
        logging.getLogger("uvicorn.access").error("theirs too")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines if "theirs" in line["event"]] == ["theirs"]


def test_a_logger_that_writes_again_after_lines_were_lost_does_not_wait_for_itself(settings: MakeSettings) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as received, os.fdopen(writer, "w") as stdout:
        before, sys.stdout = sys.stdout, stdout
        try:
            configure_logs(settings(log_format="json"))
            log = structlog.get_logger("app")
            for number in range(1000):
                log.error("a line", number=number, filling="x" * 100)
            os.read(received.fileno(), 1_000_000)
            again = threading.Thread(target=log.error, args=("written again",), daemon=True)
            again.start()
            again.join(20)
            assert not again.is_alive()
            lines = os.read(received.fileno(), 1_000_000).splitlines()
        finally:
            sys.stdout = before
    assert [json.loads(line)["event"] for line in lines[-2:]] == ["log lines were lost", "written again"]


@pytest.mark.parametrize("reader_comes_after", [20, 80, 200])
def test_a_slow_reader_is_waited_for_a_tenth_of_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch, reader_comes_after: int
) -> None:
    """Whether it comes in time for a line or not, and though some lines get through without waiting."""
    waited, clock, polls = [0.0], [100.0], [0]

    class Poll:
        def register(self, *_: object) -> None:
            pass

        def poll(self, milliseconds: int) -> list[int]:
            polls[0] += 1
            waiting = min(milliseconds, reader_comes_after)
            waited[0] += waiting
            clock[0] += waiting / 1000
            return [1] * (polls[0] % 5 == 0 or waiting == reader_comes_after)

    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"), os.fdopen(writer, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(select, "poll", Poll)
        patch.setattr(time, "monotonic", lambda: clock[0])
        patch.setattr(sys, "stdout", stdout)
        output = Output()
        for windows in (1, 2):
            for _ in range(100):
                output.write("x\n")
            assert 50 * windows < waited[0] <= 100 * windows + 1
            clock[0] += 10
