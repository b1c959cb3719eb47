"""Callers and models stay within their limits, which OpenAI's headers tell, whatever becomes of the storage."""

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from app.access import limits
from app.access.callers import Caller, hash_key
from app.access.limits import Limiter
from app.access.process_storage import ProcessStorage
from app.config import Limits, ModelEntry, Settings
from app.errors import RateLimited
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from app.telemetry.metrics import Metrics
from tests.conftest import Serve
from tests.stub import PROMPT_TOKENS, TEXT, Behaviour, Stub
from tests.wire import CHAT, HELLO, Call

EMBEDDINGS = "/v1/embeddings"
USED = PROMPT_TOKENS + len(TEXT.split()) + 1
"""Tokens that the stub's answer takes."""
STALLS = Behaviour(stall_after=3)
DONE = b"data: [DONE]\n\n"

Ask = Callable[..., httpx2.Response]


class Served:
    """A server whose callers `a` and `b`, with keys of the same names, have limits; or whose model has."""

    def __init__(
        self, client: httpx2.Client, serve: Serve, stub: Stub, *, model: Any = None, settings: Any = None, **caller: Any
    ) -> None:
        table: Any = {
            "gpt-4o": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"} | (model or {}),
            "demo": {"upstream": "demo/echo"},
        }
        callers: Any = {name: {"key_sha256": hash_key(name)} | caller for name in "ab"}
        self.url = serve(Settings(models=table, callers=callers, retries=0, **(settings or {})))
        self._client = client

    def ask(self, key: str = "a", path: str = CHAT, **fields: Any) -> httpx2.Response:
        body = fields if "input" in fields else {"messages": HELLO} | fields
        return self._client.post(self.url + path, json=body, headers={"Authorization": f"Bearer {key}"})

    def stream(self, key: str = "a", **fields: Any) -> Call:
        return Call(self.url, key, stream=True, **fields)

    def metric(self, name: str) -> float:
        page = self._client.get(f"{self.url}/metrics").text
        return float(next(line for line in page.splitlines() if line.startswith(name)).rpartition(" ")[2])


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=20) as client:
        yield client


@pytest.fixture
def served(client: httpx2.Client, serve: Serve, stub: Stub) -> Callable[..., Served]:
    return lambda **given: Served(client, serve, stub, **given)


def remaining(response: httpx2.Response, what: str = "tokens") -> int:
    return int(response.headers[f"x-ratelimit-remaining-{what}"])


def is_refused(response: httpx2.Response) -> bool:
    """Return whether a limit was reached; hold the refusal against what all of them have in common."""
    if response.status_code == 200:
        return False
    body = response.json()
    assert (response.status_code, body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert body["error"]["type"] == "rate_limit_error"
    return True


# Requests.


def test_requests_are_counted_to_the_limit_and_told_in_openais_headers(served: Callable[..., Served]) -> None:
    server = served(requests_per_minute=3)
    answers = [server.ask() for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["x-ratelimit-limit-requests"] for answer in answers] == ["3"] * 5
    assert [remaining(answer, "requests") for answer in answers] == [2, 1, 0, 0, 0]
    for answer in answers:
        reset = re.fullmatch(r"(\d+\.\d{3})s", answer.headers["x-ratelimit-reset-requests"])
        assert reset
        assert 0 < float(reset[1]) <= 60
        assert is_refused(answer) == ("retry-after" in answer.headers)
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert "This caller has reached its limit of 3 requests a minute." in answers[-1].text


def test_a_streams_headers_tell_the_limits_too(served: Callable[..., Served]) -> None:
    with served(requests_per_minute=3, tokens_per_minute=9000).stream() as call:
        assert call.headers["x-ratelimit-remaining-requests"] == "2"
        assert 0 < int(call.headers["x-ratelimit-remaining-tokens"]) < 9000


def test_one_callers_limit_is_not_another_s(served: Callable[..., Served]) -> None:
    server = served(requests_per_minute=1)
    assert [is_refused(server.ask(key)) for key in "aabb"] == [False, True, False, True]


def test_a_models_limit_binds_all_callers_and_no_other_model(served: Callable[..., Served]) -> None:
    server = served(model={"requests_per_minute": 1})
    assert [is_refused(server.ask(key)) for key in "ab"] == [False, True]
    assert "This model has reached" in server.ask("b").text
    assert not is_refused(server.ask("b", model="demo"))


def test_headers_tell_the_tighter_of_two_limits(served: Callable[..., Served]) -> None:
    server = served(requests_per_minute=5, model={"requests_per_minute": 3})
    assert server.ask().headers["x-ratelimit-limit-requests"] == "3"
    assert server.ask(model="demo").headers["x-ratelimit-limit-requests"] == "5"


def test_who_has_no_limit_is_told_of_none(served: Callable[..., Served]) -> None:
    assert not [name for name in served().ask().headers if name.startswith("x-ratelimit")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that a test moves by hand."""
    clock = SimpleNamespace(now=1_800_000_000.7, monotonic=time.monotonic)
    clock.time = lambda: clock.now
    monkeypatch.setattr("app.access.limits.time", clock)
    monkeypatch.setattr("app.access.process_storage.time", clock)
    return clock


@pytest.mark.parametrize("limit", [{"requests_per_minute": 2}, {"tokens_per_minute": 2100}], ids=str)
def test_who_waits_as_long_as_retry_after_says_is_let_in(
    served: Callable[..., Served], clock: SimpleNamespace, stub: Stub, limit: dict[str, int]
) -> None:
    server = served(**limit)
    stub.default = Behaviour(text="word " * 1040)
    assert not is_refused(server.ask())
    clock.now += 0.4
    server.ask()
    clock.now += 20.25
    refused = server.ask()
    assert is_refused(refused)
    assert refused.headers["retry-after"] == "40"
    clock.now += 38
    assert is_refused(server.ask())
    clock.now += 2
    assert not is_refused(server.ask())


def test_refused_requests_do_not_lengthen_the_wait(served: Callable[..., Served], clock: SimpleNamespace) -> None:
    server = served(requests_per_minute=1)
    for _ in range(10):
        server.ask()
        clock.now += 6.1
    assert not is_refused(server.ask())


# Tokens.


def test_tokens_are_reserved_before_a_call_and_settled_after_it(served: Callable[..., Served]) -> None:
    server = served(tokens_per_minute=9000)
    first, second, third = (server.ask(max_tokens=1000) for _ in range(3))
    assert first.headers["x-ratelimit-limit-tokens"] == "9000"
    estimate = 9000 - 1000 - remaining(first)
    assert 0 < estimate < 50
    assert remaining(second) == remaining(first) - USED
    assert remaining(third) == remaining(first) - 2 * USED


@pytest.mark.parametrize(
    ("fields", "reserved"),
    [
        ({}, 1024),
        ({"max_tokens": 300}, 300),
        ({"max_completion_tokens": 400, "max_tokens": 300}, 400),
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

    async def admitted() -> int:
        async with Limiter(settings, Metrics()).admit(caller, fields["model"], entry, fields) as admission:
            return 9000 - int(admission.headers["x-ratelimit-remaining-tokens"])

    assert reserved <= asyncio.run(admitted()) <= reserved + 40


def test_what_is_reserved_is_not_given_to_another_call(served: Callable[..., Served], stub: Stub) -> None:
    server = served(tokens_per_minute=1500)
    stub.queue(STALLS)
    with server.stream(max_tokens=1000) as call:
        next(call.events)
        assert is_refused(server.ask(max_tokens=1000))
        assert not is_refused(server.ask(max_tokens=100))
    assert stub.requests[0].closed.wait(5)
    assert not is_refused(until(lambda: server.ask(max_tokens=1000), lambda answer: answer.status_code == 200))


def until(ask: Ask, condition: Callable[[httpx2.Response], bool]) -> httpx2.Response:
    """Ask until an answer fits; return the last one."""
    for _ in range(50):
        if condition(answer := ask()):
            break
        time.sleep(0.02)
    return answer


def test_a_request_that_is_too_large_alone_is_told_not_to_come_again(served: Callable[..., Served]) -> None:
    server = served(tokens_per_minute=500)
    refused = server.ask(max_tokens=600)
    assert is_refused(refused)
    assert "lower max_tokens" in refused.json()["detail"]
    assert "retry-after" not in refused.headers
    assert refused.headers["x-should-retry"] == "false"
    assert remaining(server.ask(max_tokens=1)) > 450


@pytest.mark.parametrize(
    ("behaviour", "used"),
    [
        (Behaviour(), USED),
        (Behaviour(usage=False), None),
        (Behaviour(status=500), 0),
        (Behaviour(status=0), 0),
        (Behaviour(body=b'{"choices": [], "usage": {"prompt_tokens": -5, "completion_tokens": "many"}}'), 0),
        (Behaviour(cut_after=3), None),
    ],
    ids=["whole", "without usage", "refused", "unreachable", "nonsense", "cut off"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_takes_what_its_provider_says_or_what_was_seen(
    served: Callable[..., Served], stub: Stub, behaviour: Behaviour, used: int | None, stream: bool
) -> None:
    server = served(tokens_per_minute=9000)
    reserved = 9000 - remaining(server.ask(max_tokens=100))
    stub.queue(behaviour)
    server.ask(max_tokens=100, stream=stream)
    taken = 9000 - remaining(server.ask(max_tokens=100)) - reserved - USED
    if used is not None:
        assert taken == used
    else:  # the prompt's estimate, and a token for each chunk; of a whole answer nothing is seen
        assert (0 < taken < 60) == stream


def test_embeddings_take_tokens_too(served: Callable[..., Served]) -> None:
    server = served(tokens_per_minute=9000)
    first, second = (server.ask(path=EMBEDDINGS, input="Hello") for _ in range(2))
    assert remaining(second) == remaining(first) - PROMPT_TOKENS


def test_a_stream_whose_client_left_takes_what_was_sent(served: Callable[..., Served], stub: Stub) -> None:
    server = served(tokens_per_minute=9000)
    stub.queue(Behaviour(text="word " * 30, stall_after=25))
    with server.stream(max_tokens=4000) as call:
        for _ in range(20):
            next(call.events)
    assert stub.requests[0].closed.wait(5)
    answer = until(lambda: server.ask(max_tokens=10), lambda answer: remaining(answer) > 8000)
    assert 9000 - 60 - 40 - USED * 50 < remaining(answer) < 9000 - 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_whose_client_left_before_anything_came_keeps_what_was_reserved(
    served: Callable[..., Served], stub: Stub, stream: bool
) -> None:
    """Else whoever hangs up in time would use a provider for nothing."""
    server = served(tokens_per_minute=9000)
    stub.queue(Behaviour(delay_headers=60))
    with Call(server.url, "a", max_tokens=4000, stream=stream):
        assert stub.wait_until(lambda: bool(stub.requests))
    assert stub.requests[0].closed.wait(5)
    assert remaining(server.ask(max_tokens=10)) < 5000


def test_the_application_s_own_calls_are_bound_by_the_models_limits_alone(stub: Stub) -> None:
    entry = ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1", requests_per_minute=2)

    async def calls() -> None:
        async with Upstreams(Settings(models={"m": entry}, default_model="m")) as upstreams:
            llm = LLMClient(upstreams)
            for _ in range(2):
                await llm.complete(messages=HELLO)
            with pytest.raises(RateLimited, match="This model has reached"):
                await llm.complete(messages=HELLO)

    asyncio.run(calls())


# Calls in flight.


@pytest.mark.parametrize("kind", ["caller", "model"])
def test_calls_in_flight_are_counted_to_the_limit(served: Callable[..., Served], stub: Stub, kind: str) -> None:
    limit = {"max_in_flight": 2}
    server = served(**(limit if kind == "caller" else {"model": limit}))
    stub.default = STALLS
    with server.stream() as first, server.stream() as second:
        next(first.events)
        next(second.events)
        refused = server.ask()
        assert is_refused(refused)
        assert refused.headers["retry-after"] == "1"
        assert f"This {kind} has 2 calls in flight, its limit." in refused.text
        stub.default = Behaviour()
        assert is_refused(server.ask("b")) == (kind == "model")
        first.leave()
        assert until(server.ask, lambda answer: answer.status_code == 200).status_code == 200


def test_a_refused_call_holds_no_place(served: Callable[..., Served]) -> None:
    server = served(max_in_flight=1, requests_per_minute=1)
    assert [is_refused(server.ask()) for _ in range(3)] == [False, True, True]
    assert "requests a minute" in server.ask().text


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(status=500), Behaviour(cut_after=2)], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_has_ended_leaves_its_place(
    served: Callable[..., Served], stub: Stub, behaviour: Behaviour, stream: bool
) -> None:
    server = served(max_in_flight=1)
    stub.default = behaviour
    assert 429 not in [server.ask(stream=stream).status_code for _ in range(3)]


def test_callers_that_do_not_come_again_are_forgotten(clock: SimpleNamespace) -> None:
    async def count() -> list[int]:
        storage = ProcessStorage()
        sizes = []
        for number in range(1000):
            await storage.acquire_entry(f"requests/{number}", 5, 60)
            await storage.incr(f"tokens/{number}", 60, 5)
        sizes.append(len(storage))
        clock.now += 61
        await storage.incr("tokens/new", 60)
        return [*sizes, len(storage)]

    assert asyncio.run(count()) == [2000, 1]


# The process's own limit.


def test_a_process_that_has_too_much_to_do_refuses_more_but_answers_probes(
    served: Callable[..., Served], stub: Stub
) -> None:
    server = served(settings={"max_in_flight": 1})
    stub.default = STALLS
    with server.stream() as call:
        next(call.events)
        for path in (CHAT, EMBEDDINGS):
            refused = server.ask(path=path, **({"input": "x"} if path == EMBEDDINGS else {}))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
        for path in ("/health", "/ready", "/metrics"):
            assert httpx2.get(server.url + path).status_code == 200
    stub.default = Behaviour()
    assert until(server.ask, lambda answer: answer.status_code == 200).status_code == 200


def test_a_request_waits_a_moment_for_its_place(served: Callable[..., Served], stub: Stub) -> None:
    server = served(settings={"max_in_flight": 1})
    stub.queue(Behaviour(delay_headers=0.2))
    with ThreadPoolExecutor(2) as pool:
        assert [answer.status_code for answer in pool.map(lambda _: server.ask(), range(2))] == [200, 200]


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
    assert httpx2.get(f"{server.url}/ready").json() == {"status": "ready"}
    assert server.metric("limit_storage_up") == 1
    with capture_logs() as lines, ThreadPoolExecutor(30) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda _: server.ask(model="demo"), range(30)))
        waited = time.monotonic() - began
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 10
    assert waited < 5, "30 calls wait for the storage together, not one after another"
    ready = httpx2.get(f"{server.url}/ready")
    assert ready.status_code == 200
    assert ready.json()["degraded"] == ["The limit storage does not answer: each process counts for itself."]
    assert server.metric("limit_storage_up") == 0
    assert [line["event"] for line in lines if line["log_level"] == "error"] == [FAILS]


def test_a_stalled_storage_is_waited_for_once_and_briefly(served: Callable[..., Served], stalled: int) -> None:
    server = served(requests_per_minute=100, settings={"limit_storage": SHARED.format(port=stalled)})

    def seconds() -> float:
        began = time.monotonic()
        assert server.ask(model="demo").status_code == 200
        return time.monotonic() - began

    first, *others = (seconds() for _ in range(5))
    assert 0.2 < first < 1.5
    assert min(others) < 0.2


class Shared(ProcessStorage):
    """A storage that fails on demand, and takes some turns of the loop as any other does."""

    def __init__(self) -> None:
        super().__init__()
        self.up = True

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        if not self.up:
            raise ConnectionError("redis://:password@host")
        return await super().incr(key, expiry, amount)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Shared:
    """The storage behind any address."""
    shared = Shared()
    monkeypatch.setattr(limits, "storage_from_string", lambda *_, **__: shared)
    monkeypatch.setattr(limits, "STORAGE_PAUSE", 0.05)
    return shared


def limited(settings: Settings | None = None, **given: int) -> tuple[Limiter, Callable[..., Any]]:
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
        assert "degraded" in httpx2.get(f"{server.url}/ready").json()
        shared.up = True
        until(lambda: server.ask(max_tokens=100), lambda _: server.metric("limit_storage_up") == 1)
    assert "degraded" not in httpx2.get(f"{server.url}/ready").json()
    assert remaining(server.ask(max_tokens=100)) < before - USED, "what was used before counts again"
    assert [line["event"] for line in lines if "storage" in line["event"]] == [FAILS, "limit storage is back"]
    assert "password" not in str(lines)


@pytest.mark.parametrize("fails_first", [False, True])
def test_nothing_is_refunded_where_it_was_not_charged(shared: Shared, fails_first: bool) -> None:
    async def calls() -> list[int]:
        limiter, admit = limited(tokens_per_minute=9000)
        told = []
        for fails in (fails_first, not fails_first, not fails_first):
            shared.up = not fails
            await asyncio.sleep(0.06)
            async with admit() as admission:
                told.append(9000 - int(admission.headers["x-ratelimit-remaining-tokens"]))
                admission.used = 100
                shared.up = fails
                await asyncio.sleep(0.06)
        assert isinstance(limiter, Limiter)
        return told

    first, second, third = asyncio.run(calls())
    assert second == first + 100, "used in full where nothing had been reserved"
    assert third >= second, "and nothing was given back there"


@pytest.mark.usefixtures("shared")
def test_a_busy_process_does_not_take_the_storage_for_stalled() -> None:
    """Else a burst of requests would be counted alone, and too many let in."""

    async def burst() -> bool:
        limiter, admit = limited(tokens_per_minute=9000)
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
        return limiter.degraded

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
