"""Limits while a shared storage fails, and what the limiter itself reserves and forgets."""

import asyncio
import contextlib
import gc
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from app.access import limit_storage
from app.access.callers import Caller
from app.access.limit_storage import to_its_end
from app.access.limits import Limiter
from app.access.process_storage import ProcessStorage
from app.access.windows import Count, Window, of_requests, of_tokens
from app.config import Limits, ModelEntry, Settings
from app.llm.targets import resolve
from app.telemetry.metrics import Metrics
from tests import limited
from tests.limited import USED, Served, remaining, until
from tests.wire import HELLO

client = pytest.fixture(scope="module")(limited.client)
served = pytest.fixture(limited.served)
clock = pytest.fixture(limited.clock)


@pytest.mark.parametrize(
    ("fields", "reserved"),
    [
        ({}, 1024),
        ({"max_tokens": 300}, 300),
        ({"max_completion_tokens": 400, "max_tokens": 300}, 400),
        ({"max_completion_tokens": 300, "max_tokens": 400}, 400),
        ({"model": "with defaults", "max_completion_tokens": 10}, 10),
        ({"max_tokens": 300, "n": 3}, 900),
        ({"model": "with defaults"}, 2000),
        ({"model": "with defaults", "max_tokens": 10}, 10),
        ({"messages": [{"role": "user", "content": "x" * 4000}], "max_tokens": 1}, 1001),
        ({"input": "x" * 4000}, 1000),
    ],
    ids=str,
)
def test_reserved_is_what_a_call_may_take_at_the_most(fields: dict[str, Any], reserved: int) -> None:
    entry: Any = {"upstream": "openai/m", "api_base": "http://127.0.0.1:9/v1"}
    settings = Settings(
        models={
            "gpt-4o": ModelEntry(**entry),
            "with defaults": ModelEntry(**entry, defaults={"max_tokens": 2000}),
        }
    )
    fields = {"model": "gpt-4o"} | ({} if "input" in fields else {"messages": HELLO}) | fields
    entry = settings.models[fields["model"]]
    caller = Caller("test", limits=Limits(tokens_per_minute=9000))
    sent = resolve(fields["model"], entry, {}).fields(fields)

    async def admitted() -> int:
        async with Limiter(settings, Metrics()).admit(caller, fields["model"], entry, sent) as admission:
            return 9000 - int(admission.headers["x-ratelimit-remaining-tokens"])

    assert reserved <= asyncio.run(admitted()) <= reserved + 40


def test_callers_that_do_not_come_again_are_forgotten(clock: SimpleNamespace) -> None:
    storage = ProcessStorage()

    def kept() -> int:
        return len(storage._entries) + len(storage._counts)  # noqa: SLF001 - nobody else asks

    for number in range(1000):
        name = str(number)
        storage.reserve([of_requests("caller", name, 5), of_tokens("caller", name, 5, 5)])
    assert kept() == 2000
    clock.now += 61
    storage.reserve([of_tokens("caller", "new", 5, 1)])
    assert kept() == 1


# A storage that is shared, and fails.

SHARED = "async+valkey://127.0.0.1:{port}"
FAILS = "limit storage fails: each process counts for itself"


@pytest.fixture
def stalled() -> Iterator[int]:
    """The port of a storage that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def down() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize("kind", ["down", "stalled"])
def test_while_the_storage_fails_each_process_counts_alone(
    served: Callable[..., Served], request: pytest.FixtureRequest, kind: str
) -> None:
    storage = SHARED.format(port=request.getfixturevalue(kind))
    server = served(requests_per_minute=20, settings={"limit_storage": storage})
    assert httpx2.get(f"{server.url}/ready", timeout=60).json() == {"status": "ready"}
    assert server.metric("limit_storage_up") == 1
    with capture_logs() as lines, ThreadPoolExecutor(30) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda _: server.ask(model="demo"), range(30)))
        waited = time.monotonic() - began
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 10
    assert waited < 15 * limit_storage.STORAGE_TIMEOUT, "30 calls wait for the storage together, not one after another"
    ready = httpx2.get(f"{server.url}/ready", timeout=60)
    assert ready.status_code == 200
    assert ready.json()["degraded"] == ["The limit storage does not answer: each process counts for itself."]
    assert server.metric("limit_storage_up") == 0
    assert [line["event"] for line in lines if line["log_level"] == "error"] == [FAILS]


def test_a_stalled_storage_is_waited_for_once_and_briefly(
    served: Callable[..., Served], stalled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_storage, "STORAGE_PAUSE", 60)
    server = served(requests_per_minute=100, settings={"limit_storage": SHARED.format(port=stalled)})

    def seconds() -> float:
        began = time.monotonic()
        assert server.ask(model="demo").status_code == 200
        return time.monotonic() - began

    first, *others = (seconds() for _ in range(5))
    assert first >= limit_storage.STORAGE_TIMEOUT * 0.9
    assert min(others) < first


class Shared:
    """A storage that fails on demand, and takes some turns of the loop as any other does."""

    def __init__(self) -> None:
        self._counts = ProcessStorage()
        self.up = True

    async def reserve(self, windows: Sequence[Window]) -> tuple[int | None, list[Count]]:
        await self._travel()
        told = self._counts.reserve(windows)
        await self._travel()
        return told

    async def settle(self, changes: Sequence[tuple[Window, int, float]]) -> list[int]:
        await self._travel()
        return self._counts.settle(changes)

    async def _travel(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        if not self.up:
            raise ConnectionError("redis://:password@host")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Shared:
    """The storage behind any address."""
    shared = Shared()
    monkeypatch.setattr(limit_storage, "SharedStorage", lambda *_: shared)
    monkeypatch.setattr(limit_storage, "STORAGE_PAUSE", 0.05)
    return shared


def limiter_with(settings: Settings | None = None, **given: int) -> tuple[Limiter, Callable[..., Any]]:
    """Return a limiter with a shared storage, and what admits a call of its one caller."""
    settings = settings or Settings(models={"demo": ModelEntry(upstream="demo/echo")}, default_model="demo")
    limiter = Limiter(settings.model_copy(update={"limit_storage": "async+valkey://host"}), Metrics())
    caller = Caller("test", limits=Limits(**given))
    return limiter, lambda: limiter.admit(
        caller, "demo", settings.models["demo"], {"messages": HELLO, "max_tokens": 500}
    )


def test_the_storage_heals_by_itself(served: Callable[..., Served], shared: Shared) -> None:
    server = served(tokens_per_minute=9000, settings={"limit_storage": SHARED.format(port=1)})
    with capture_logs() as lines:
        before = remaining(server.ask(max_tokens=100))
        shared.up = False
        alone = server.ask(max_tokens=100)
        assert remaining(alone) == before, "this process's own count begins at nothing"
        assert "degraded" in httpx2.get(f"{server.url}/ready", timeout=60).json()
        shared.up = True
        until(lambda: server.ask(max_tokens=100), lambda _: server.metric("limit_storage_up") == 1)
    assert "degraded" not in httpx2.get(f"{server.url}/ready", timeout=60).json()
    assert remaining(server.ask(max_tokens=100)) < before - USED, "what was used before counts again"
    assert [line["event"] for line in lines if "storage" in line["event"]] == [FAILS, "limit storage is back"]
    assert "password" not in str(lines)


@pytest.mark.parametrize("fails_first", [False, True])
def test_nothing_is_refunded_where_it_was_not_charged(shared: Shared, fails_first: bool) -> None:
    async def calls() -> list[int]:
        _, admit = limiter_with(tokens_per_minute=9000)
        told = []
        for fails in (fails_first, not fails_first, not fails_first):
            shared.up = not fails
            await asyncio.sleep(0.06)
            async with admit() as admission:
                told.append(9000 - int(admission.headers["x-ratelimit-remaining-tokens"]))
                admission.charge("caller", 100)
                shared.up = fails
                await asyncio.sleep(0.06)
        return told

    first, second, third = asyncio.run(calls())
    assert second == first + 100, "used in full where nothing had been reserved"
    assert third >= second, "and nothing was given back there"


@pytest.mark.usefixtures("shared")
def test_a_busy_process_does_not_take_the_storage_for_stalled() -> None:
    """Else a burst of requests would be counted alone, and too many let in."""

    async def burst() -> bool:
        limiter, admit = limiter_with(tokens_per_minute=9000)
        async with admit():
            pass
        loop = asyncio.get_running_loop()

        def hog(times: int) -> None:
            time.sleep(0.1)
            if times:
                loop.call_soon(hog, times - 1)

        hog(5)
        async with admit():
            pass
        return limiter.storage.degraded

    assert asyncio.run(burst()) is False


def test_a_cancelled_wait_for_the_storage_leaves_nothing_behind(stalled: int) -> None:
    async def leave() -> tuple[int, int]:
        settings = Settings(models={"demo": ModelEntry(upstream="demo/echo")}, default_model="demo")
        limiter = Limiter(settings.model_copy(update={"limit_storage": SHARED.format(port=stalled)}), Metrics())
        caller = Caller("test", limits=Limits(requests_per_minute=5, max_in_flight=1))
        admission = limiter.admit(caller, "demo", settings.models["demo"], {"messages": HELLO})
        before = len(asyncio.all_tasks())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await admission.__aenter__()
        await asyncio.sleep(0.01)
        return sum(limiter.in_flight.values()), len(asyncio.all_tasks()) - before

    assert asyncio.run(leave()) == (0, 0)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("turns", range(1, 12))
def test_what_was_reserved_is_given_back_whenever_the_wait_for_the_storage_is_cancelled(turns: int) -> None:
    async def leave() -> tuple[int, int]:
        _, admit = limiter_with(tokens_per_minute=9000, requests_per_minute=5)
        entering = asyncio.create_task(admit().__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        entering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await entering
        async with admit() as admission:
            return int(admission.headers["x-ratelimit-remaining-tokens"]), len(asyncio.all_tasks())

    left, tasks = asyncio.run(leave())
    assert left > 9000 - 600, "only the second call's tokens are reserved"
    assert tasks == 1


def test_a_settlement_is_done_to_its_end_though_it_is_cancelled(shared: Shared) -> None:
    async def leave() -> int:
        _, admit = limiter_with(tokens_per_minute=9000)
        admission = await admit().__aenter__()
        leaving = asyncio.create_task(admission.__aexit__(None, None, None))
        await asyncio.sleep(0)
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        [told] = await shared.settle([(of_tokens("caller", "test", 9000, 0), 0, 0)])
        return told

    assert asyncio.run(leave()) == 0


@pytest.mark.usefixtures("shared")
def test_what_was_reserved_in_a_window_that_has_ended_takes_nothing_off_the_next_one(clock: SimpleNamespace) -> None:
    async def late() -> list[int]:
        _, admit = limiter_with(tokens_per_minute=9000)
        told = []
        for seconds in (61, 0):
            async with admit() as admission:
                told.append(9000 - int(admission.headers["x-ratelimit-remaining-tokens"]))
                clock.now += seconds
                async with admit() as other:
                    told.append(9000 - int(other.headers["x-ratelimit-remaining-tokens"]))
                    other.charge("caller", 100)
                admission.charge("caller", 10)
        return told

    first, second, third, _ = asyncio.run(late())
    assert first == second
    assert third == 100 + first


@pytest.mark.anyio
async def test_who_is_cancelled_while_work_goes_to_its_end_leaves_nothing_to_the_garbage_collector() -> None:
    class Body: ...

    held: list[weakref.ref[Body]] = []

    async def caller() -> Body:
        body = Body()
        held.append(weakref.ref(body))
        await to_its_end(asyncio.sleep(0.05))
        return body

    gc.disable()
    try:
        task = asyncio.create_task(caller())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        await asyncio.sleep(0)
        assert held[0]() is None
    finally:
        gc.enable()
