"""Ten times more work than there is room for: everybody gets an answer, and probes get theirs at once."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from two_servers import ASKED, CHAT, run

from operations.servers import Behaviour, Process, Stub

ROOM = 20
SECONDS = 10
KEY = "key"


@pytest.fixture
def stub() -> Iterator[Any]:
    """A provider that takes a tenth of a second for an answer."""
    with Stub(Behaviour(delay_headers=0.1)) as stub:
        yield stub


@pytest.fixture
def server(stub: Any) -> Iterator[Any]:
    env = {
        "APP_MODELS": json.dumps({"m": {"upstream": "openai/m", "api_base": f"{stub.url}/v1"}}),
        "APP_DEFAULT_MODEL": "m",
        "APP_CALLERS": json.dumps({"web": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}}),
        "APP_MAX_IN_FLIGHT": str(ROOM),
        "APP_LOG_LEVEL": "warning",
    }
    with Process(env=env) as server:
        yield server


class Probes:
    """Somebody who asks for `/health` again and again, in a thread; a context manager.

    Attributes:
        seconds: how long each answer took.
    """

    def __init__(self, port: int) -> None:
        self.seconds: list[float] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Probes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(0.05):
            began = time.monotonic()
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
                connection.request("GET", "/health")
                assert connection.getresponse().status == http.HTTPStatus.OK
            self.seconds.append(time.monotonic() - began)


def test_ten_times_too_much_work_is_answered_or_refused(server: Any, record_property: Any) -> None:
    statuses: Counter[int] = Counter()
    memory: list[int] = []

    async def caller(client: aiohttp.ClientSession, end: float) -> None:
        while time.monotonic() < end:
            async with client.post(server.url + CHAT, json=ASKED, headers={"Authorization": f"Bearer {KEY}"}) as answer:
                body = await answer.json(content_type=None)
                statuses[answer.status] += 1
                if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                    assert answer.headers["Retry-After"] == "1"
                    assert body["error"]["code"] == "overloaded"
                else:
                    assert body["content"]

    async def crowd(client: aiohttp.ClientSession) -> None:
        end = time.monotonic() + SECONDS
        async with asyncio.TaskGroup() as group:
            for _ in range(10 * ROOM):
                group.create_task(caller(client, end))
            while time.monotonic() < end:
                memory.append(server.rss)
                await asyncio.sleep(0.5)

    with Probes(server.port) as probes:
        run(crowd)
    record_property("answers", dict(statuses))
    record_property("slowest health, ms", round(1000 * max(probes.seconds)))
    record_property("memory, MB", [round(size / 1e6, 1) for size in (memory[0], memory[len(memory) // 2], memory[-1])])
    assert statuses.keys() == {200, 503}
    assert statuses[200] > SECONDS * ROOM, "all that room is used: 200 answers a second are possible"
    probes.seconds.sort()
    assert len(probes.seconds) > 50
    # Where nobody else is at work all are under 0.1 s; a machine that is shared may hold one up.
    assert probes.seconds[len(probes.seconds) * 9 // 10] < 0.1
    assert probes.seconds[-1] < 1
    assert memory[-1] - memory[len(memory) // 2] < 5_000_000
