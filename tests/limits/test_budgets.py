"""Two processes that share a Valkey never spend more than a budget, by the ledger of the provider itself."""

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import valkey as valkey_client
from two_servers import CHAT, Valkey, run, two_servers

from operations.servers import Behaviour, Stub

CENT = 10_000
"""Micro-dollars."""
ASKED: dict[str, Any] = {"max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
PRICES = {"m": {"input": 10, "output": 50}, "spare": {"input": 20, "output": 90}}
COSTS = {name: 7 * price["input"] + 8 * price["output"] for name, price in PRICES.items()}
"""Micro-dollars that the stub charges for an answer, of which it tells 7 and 8 tokens."""
MOST_UNKNOWN = 5_000
"""Micro-dollars that an answer without usage may be estimated at, its JSON with it."""
CALLS = 200
FREE = (400, 429, 500, 503)
"""Statuses for which the stub charges nothing. For every other answer it charges in full, told or not."""
TOLD = [Behaviour(), *(Behaviour(status=status) for status in FREE)]
BEHAVIOURS = [
    *[Behaviour()] * 4,
    *TOLD,
    Behaviour(status=504),
    Behaviour(status=0),
    Behaviour(cut_after=2),
    Behaviour(usage=False),
    Behaviour(error_at=2),
    Behaviour(delay_headers=0.3),
    Behaviour(pace=0.1),
    Behaviour(stall_after=2),
]


@pytest.fixture
def stub() -> Iterator[Any]:
    with Stub() as stub:
        yield stub


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path) as valkey:
        yield valkey


def connected(valkey: Valkey) -> Any:
    return valkey_client.Valkey(port=valkey.port, socket_timeout=60)


def counted(valkey: Valkey, scope: str = "caller/web") -> int:
    """Return what is spent or reserved today, in micro-dollars."""
    client = connected(valkey)
    [key] = client.keys(f"app:usd/????-??-??/{scope}")
    return int(client.hget(key, "count"))


def models(stub: Any) -> dict[str, dict[str, Any]]:
    at_stub = {"api_base": f"{stub.url}/v1"}
    return {
        "m": {"upstream": "openai/m", "fallbacks": ["spare"], "price": PRICES["m"], **at_stub},
        "spare": {"upstream": "openai/spare", "price": PRICES["spare"], **at_stub},
    }


def charged(stub: Any) -> int:
    """Return what the stub has charged for all that it was asked."""
    return sum(COSTS[one.body["model"]] for one in stub.requests if one.behaviour.status not in FREE)


async def in_flight(client: aiohttp.ClientSession, url: str) -> bool:
    """Return whether a server answers somebody else."""
    async with client.get(f"{url}/metrics", headers={"Authorization": "Bearer web"}) as page:
        [line] = [line for line in (await page.text()).splitlines() if line.startswith("http_requests_in_flight ")]
        return float(line.rpartition(" ")[2]) > 1


async def ask(client: aiohttp.ClientSession, url: str, chance: random.Random, seen: Counter[Any]) -> None:
    """Ask whole or streamed; now and then, leave."""
    stream, leaves = chance.random() < 0.5, chance.choice([None, None, None, 0.05, 0.4])
    headers = {"Authorization": "Bearer web"}
    try:
        async with (
            asyncio.timeout(leaves or 3),
            client.post(url + CHAT, json=ASKED | {"stream": stream}, headers=headers) as answer,
        ):
            seen[answer.status] += 1
            body = await answer.read()
            if answer.status == 429:
                seen["budget_exceeded"] += b"budget_exceeded" in body
    except TimeoutError:
        seen["left"] += 1


@pytest.mark.parametrize("seed", range(2))
def test_two_processes_at_one_cent_left_never_overspend(valkey: Valkey, stub: Any, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    stub.default = lambda _: chance.choice(BEHAVIOURS)
    seen: Counter[Any] = Counter()
    with two_servers(valkey, table=models(stub), web={"usd_per_day": CENT / 1e6, "metrics": True}) as servers:

        async def calls(client: aiohttp.ClientSession) -> None:
            for _ in range(2):
                await asyncio.gather(*(ask(client, servers[number % 2].url, chance, seen) for number in range(CALLS)))
            while any([await in_flight(client, server.url) for server in servers]):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.1)

        run(calls)
        unknown = sum(one.behaviour not in TOLD for one in stub.requests) + seen["left"]
        assert charged(stub) <= CENT
        assert charged(stub) <= counted(valkey) <= charged(stub) + unknown * MOST_UNKNOWN
        assert charged(stub) > CENT / 3, "the budget is used"
        assert seen["budget_exceeded"] > CALLS
        assert "unexpected" not in servers[0].output + servers[1].output


def test_what_a_killed_process_had_reserved_stays_until_its_window_ends(valkey: Valkey, stub: Any) -> None:
    stub.default = Behaviour(stall_after=2)
    most = 25 * 10 + 8 * 50
    with two_servers(valkey, table=models(stub), web={"usd_per_day": 2.5 * most / 1e6}) as servers:

        async def calls(client: aiohttp.ClientSession) -> None:
            async with contextlib.AsyncExitStack() as streams:
                for _ in range(2):
                    call = client.post(
                        servers[0].url + CHAT, json=ASKED | {"stream": True}, headers={"Authorization": "Bearer web"}
                    )
                    assert (await streams.enter_async_context(call)).status == 200
                servers[0].terminate(signal.SIGKILL)
            stub.default = Behaviour()
            headers = {"Authorization": "Bearer web"}
            async with client.post(servers[1].url + CHAT, json=ASKED, headers=headers) as answer:
                assert answer.status == 429
                assert "lower max_tokens" in await answer.text()

        run(calls)
        client = connected(valkey)
        [key] = client.keys("app:usd/*")
        assert charged(stub) <= counted(valkey)
        left = 86_400 - time.time() % 86_400
        assert left - 5 < client.pttl(key) / 1000 < left + 65


LIMITS = {"requests_per_minute": 100, "tokens_per_minute": 100_000, "usd_per_day": 1, "usd_per_month": 10}


@pytest.mark.parametrize("stream", [False, True])
def test_all_limits_of_a_call_are_one_round_trip_and_its_settlement_another(
    valkey: Valkey, stub: Any, stream: bool
) -> None:
    table = models(stub)
    table["m"] |= LIMITS
    with two_servers(valkey, table=table, settings={"usd_per_day": 2}, web=LIMITS) as servers:

        async def call(client: aiohttp.ClientSession, *, stream: bool = False) -> None:
            headers = {"Authorization": "Bearer web"}
            async with client.post(servers[0].url + CHAT, json=ASKED | {"stream": stream}, headers=headers) as answer:
                assert answer.status == 200
                await answer.read()

        run(call)  # connects, and loads the scripts: a whole answer is settled before it is sent
        with connected(valkey).monitor() as monitor:
            run(partial(call, stream=stream))
            commands: list[str] = []
            for command in monitor.listen():
                name = command["command"].split()[0]
                if name == "SET":
                    break
                if command["client_type"] != "lua" and name != "CLIENT":
                    commands.append(name)
                    if len(commands) == 3:  # a stream is settled after its client has all of it
                        connected(valkey).set("end", 1)
        # The request before its body is read, then all that its call is counted in, then what it took.
        assert commands == ["EVALSHA"] * 3
