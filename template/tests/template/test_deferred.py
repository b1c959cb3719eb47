"""What is told of requests a little later is told of each, in order, with its own time, and before it is asked for."""

import asyncio
import re
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from app.http.exchange import Exchange
from app.http.request_log import RequestLog
from app.telemetry.deferred import Deferred
from app.telemetry.logs import configure_logs
from app.telemetry.metrics import Metrics
from tests.conftest import MakeSettings


def test_what_is_deferred_is_done_in_order_and_with_what_it_adds() -> None:
    done: list[int] = []

    async def run() -> list[int]:
        deferred, last = Deferred(), asyncio.Event()
        async with deferred.open():
            deferred.add(lambda: [done.append(1), deferred.add(lambda: [done.append(3), last.set()])])  # type: ignore[func-returns-value]
            deferred.add(lambda: done.append(2))
            at_first = [*done]
            await last.wait()
        return at_first

    assert asyncio.run(asyncio.wait_for(run(), 20)) == []
    assert done == [1, 2, 3]


def test_one_timer_of_the_loop_serves_all_that_comes_meanwhile() -> None:
    async def run() -> int:
        loop, deferred, timers = asyncio.get_running_loop(), Deferred(), []
        call_later = loop.call_later
        loop.call_later = lambda *given, **more: timers.append(given) or call_later(*given, **more)  # type: ignore[method-assign, func-returns-value]
        async with deferred.open():
            for number in range(100):
                deferred.add(lambda: deferred.add(int))
                if number == 50:
                    deferred.flush()
        return len(timers)

    assert asyncio.run(run()) == 1


def test_what_fails_keeps_nothing_else_from_being_done() -> None:
    done: list[int] = []
    deferred = Deferred()

    async def run() -> None:
        async with deferred.open():
            deferred.add(lambda: done.append(1))
            deferred.add(lambda: 1 // 0)
            deferred.add(lambda: done.append(2))

    with structlog.testing.capture_logs() as lines:
        asyncio.run(run())
    assert done == [1, 2]
    assert [line["error"] for line in lines] == ["ZeroDivisionError"]


def test_what_waits_at_the_end_is_done_then_and_later_work_at_once() -> None:
    done: list[int] = []

    async def run() -> None:
        deferred = Deferred()
        async with deferred.open():
            deferred.add(lambda: done.append(1))
        assert done == [1]
        deferred.add(lambda: done.append(2))
        assert done == [1, 2]

    asyncio.run(run())


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_lines_keep_their_order_their_time_and_what_is_bound(
    settings: MakeSettings, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logs(settings(log_format=log_format))
    metrics, times = Metrics(), []

    def write(log: RequestLog, number: int) -> None:
        structlog.contextvars.bind_contextvars(tenant=f"t{number}")
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": f"/line{number}", "headers": []}
        log.write(scope, Exchange(scope, None, None, 0), 0.1)  # type: ignore[arg-type]
        times.append(datetime.now(UTC))

    async def run() -> str:
        async with metrics.deferred.open():
            for number in range(3):
                copy_context().run(write, log, number)
            return capsys.readouterr().out

    log = RequestLog(metrics)
    assert asyncio.run(run()) == ""
    lines = capsys.readouterr().out.splitlines()
    for number, (line, wrote) in enumerate(zip(lines, times, strict=True)):
        assert f"/line{number}" in line
        assert re.findall(r"\bt\d\b", line) == [f"t{number}"]
        found = re.search(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line)
        assert found
        assert 0 <= (wrote - datetime.fromisoformat(found[0])).total_seconds() < 1
