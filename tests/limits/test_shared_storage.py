"""Processes that share a Valkey let in what one would, and go on without it."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from two_servers import (
    ASKED,
    Answers,
    Valkey,
    ask,
    ask_all_at_once,
    cost_of_a_stream,
    open_stream,
    readiness,
    run,
    two_servers,
)

from operations.servers import Behaviour, Stub

LIMIT = 300
SOON = 5
"""Seconds, generous: nothing waits more than a quarter of one for the storage, but this machine may be busy."""
FAILS = "limit storage fails"


@pytest.fixture
def stub() -> Iterator[Any]:
    with Stub() as stub:
        yield stub


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path) as valkey:
        yield valkey


def test_two_processes_let_in_exactly_the_limit_of_1000_calls_at_once(valkey: Valkey) -> None:
    with two_servers(valkey, web={"requests_per_minute": LIMIT}) as servers:

        async def call(client: aiohttp.ClientSession) -> None:
            answers = await ask_all_at_once(client, servers, "web", 1000)
            assert answers.statuses == {200: LIMIT, 429: 1000 - LIMIT}
            assert await readiness(client, servers) == [(200, False)] * 2

        run(call)
        assert FAILS not in servers[0].output + servers[1].output


def test_two_processes_reserve_exactly_the_tokens_that_there_are(valkey: Valkey, stub: Any) -> None:
    """1,000 streams that stay open, so that nothing is given back."""
    stub.default = Behaviour(stall_after=2)
    cost = ASKED["max_tokens"] + 22  # a quarter of the request's bytes
    callers = {name: {"tokens_per_minute": cost * LIMIT + cost // 2} for name in ("probe", "web")}
    with two_servers(valkey, stub, **callers) as servers:

        async def call(client: aiohttp.ClientSession) -> None:
            assert await cost_of_a_stream(client, servers[0].url, "probe") == cost
            answers = Answers()
            async with contextlib.AsyncExitStack() as streams:
                await asyncio.gather(
                    *(open_stream(streams, client, servers[number % 2].url, "web", answers) for number in range(1000))
                )
                assert answers.statuses == {200: LIMIT, 429: 1000 - LIMIT}

        run(call)
        assert FAILS not in servers[0].output + servers[1].output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_storage_that_fails_stops_nothing_and_is_used_again(valkey: Valkey, number: signal.Signals) -> None:
    callers = {name: {"requests_per_minute": 100} for name in ("before", "during", "after")}
    with two_servers(valkey, steady={"requests_per_minute": 1_000_000}, **callers) as servers:

        async def call(client: aiohttp.ClientSession) -> None:
            steady = Answers()
            async with asyncio.TaskGroup() as group:
                traffic = [group.create_task(go_on(client, server.url, steady)) for server in servers * 4]
                assert (await ask_all_at_once(client, servers, "before", 400)).statuses == {200: 100, 429: 300}

                valkey.fail(number)
                await until(lambda: readiness(client, servers), [(200, True)] * 2)
                during = await ask_all_at_once(client, servers, "during", 400)
                assert during.statuses == {200: 200, 429: 200}, "each process counts for itself"
                assert during.slowest < SOON

                valkey.heal()
                await until(lambda: readiness(client, servers), [(200, False)] * 2)
                assert (await ask_all_at_once(client, servers, "after", 400)).statuses == {200: 100, 429: 300}
                for task in traffic:
                    task.cancel()
            assert steady.statuses.keys() == {200}
            assert steady.statuses[200] > 100
            assert steady.slowest < SOON

        run(call)
        for server in servers:
            assert sum(FAILS in line for line in server.lines) == 1
            assert sum("limit storage is back" in line for line in server.lines) == 1


async def go_on(client: aiohttp.ClientSession, url: str, answers: Answers) -> None:
    """Ask until cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await ask(client, url, "steady", answers)
            await asyncio.sleep(0.02)


async def until(look: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Look again and again, for a while, until what is wanted is seen."""
    for _ in range(200):
        if (seen := await look()) == wanted:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{seen} and not {wanted}")
