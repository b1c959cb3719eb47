"""Limits, bounds, names and circuit breakers are everyone's own: what one caller or model does costs no other."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import APIRouter
from starlette.testclient import TestClient

from app import own
from app.access.callers import hash_key
from app.config import Settings
from app.dependencies import CurrentCaller
from app.llm.circuit_breaker import FAILURES, SECONDS, CircuitBreakers
from app.main import create_app
from tests.serving import serve
from tests.stub import Behaviour, Stub
from tests.template.running import Ask, row, running
from tests.wire import Call

FAILS = Behaviour(status=503)


@pytest.fixture
def fallback() -> Iterator[Stub]:
    """The provider of the first fallback."""
    with Stub() as stub:
        yield stub


@pytest.fixture
def ask(stub: Stub, fallback: Stub, key: str) -> Iterator[Callable[..., Ask]]:
    """Serve `a`, which fails, with a fallback `b` that has limits as given, and then `c`."""
    stub.default = FAILS

    def start(first: dict[str, Any] | None = None, **limits: Any) -> Ask:
        models = {
            "a": row(stub, fallbacks=["b", "c"], **(first or {})),
            "b": row(fallback, **limits),
            "c": {"upstream": "demo/echo"},
        }
        return servers.enter_context(running(key, models))

    with contextlib.ExitStack() as servers:
        yield start


def model_of(call: Call) -> str:
    return call.headers["x-model"]


# A fallback has its own limits.


@pytest.mark.parametrize("limit", [{"requests_per_minute": 1}, {"tokens_per_minute": 1040}], ids=str)
def test_a_fallback_is_skipped_when_its_limit_is_reached(
    ask: Callable[..., Ask], fallback: Stub, limit: dict[str, int]
) -> None:
    fallback.default = Behaviour(text="word " * 1000)
    asked = ask(**limit)
    assert [model_of(asked("a")) for _ in range(3)] == ["b", "c", "c"]
    assert asked("b").status == 429


def test_a_fallback_is_skipped_when_it_has_its_calls_in_flight(ask: Callable[..., Ask], fallback: Stub) -> None:
    asked = ask(max_in_flight=1)
    fallback.queue(Behaviour(stall_after=3))
    with asked("a", stream=True) as first:
        assert model_of(first) == "b"
        assert model_of(asked("a")) == "c"
        first.leave()
    assert fallback.requests[0].closed.wait(20)
    deadline = time.monotonic() + 20
    while asked.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert model_of(asked("a")) == "b", "the place is free again"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_fallback_is_skipped_when_more_tokens_are_asked_for_than_it_gives(
    ask: Callable[..., Ask], field: str
) -> None:
    asked = ask(max_tokens_limit=100)
    assert [model_of(asked("a", **{field: tokens})) for tokens in (100, 101)] == ["b", "c"]


def test_what_a_fallback_takes_is_its_own(ask: Callable[..., Ask], fallback: Stub) -> None:
    fallback.default = Behaviour(text="word " * 500)
    asked = ask(first={"tokens_per_minute": 5000}, tokens_per_minute=5000)
    for _ in range(3):
        assert model_of(asked("a", max_tokens=10)) == "b"
    assert int(asked("a", max_tokens=10).headers["x-ratelimit-remaining-tokens"]) > 4900
    assert int(asked("b", max_tokens=10).headers["x-ratelimit-remaining-tokens"]) < 5000 - 4 * 500


def test_when_no_fallback_has_room_the_models_own_error_is_told(stub: Stub, key: str) -> None:
    stub.default = FAILS
    models = {"a": row(stub, fallbacks=["b"]), "b": {"upstream": "demo/echo", "requests_per_minute": 1}}
    with running(key, models) as asked:
        assert [asked("a").status for _ in range(FAILURES + 2)] == [200] + [502] * (FAILURES + 1)


def test_a_call_that_a_callers_limit_refuses_is_not_counted_by_the_model(key: str) -> None:
    """The caller's own requests are counted before there is a body, so also those that another limit then refuses."""
    models = {"m": {"upstream": "demo/echo", "requests_per_minute": 1}}
    caller = {"key_sha256": hash_key(key), "requests_per_minute": 5, "tokens_per_minute": 5000}
    with running(key, models, callers={"test": caller}) as asked:
        assert [asked("m", max_tokens=6000).status for _ in range(3)] == [429] * 3
        assert [asked("m").status for _ in range(2)] == [200, 429]
        assert "This caller" in asked("m").json["detail"]


# A circuit breaker.


def test_one_callers_failures_take_a_model_from_that_caller_alone(stub: Stub) -> None:
    callers = {name: {"key_sha256": hash_key(name)} for name in ("bad", "good", "other")}
    models = {"a": row(stub, fallbacks=["demo"]), "demo": {"upstream": "demo/echo"}}
    with running("bad", models, callers=callers) as asked:

        def answers(key: str, behaviour: Behaviour) -> str:
            stub.default = behaviour
            with Call(asked.url, key, model="a") as call:
                return model_of(call)

        assert [answers("bad", FAILS) for _ in range(FAILURES + 1)] == ["demo"] * (FAILURES + 1)
        assert len(stub.requests) == FAILURES
        stub.requests.clear()
        assert [answers("bad", Behaviour()) for _ in range(2)] == ["demo", "demo"]
        assert answers("good", Behaviour()) == "a"
        assert answers("bad", Behaviour()) == "a", "an answer closes it for all"
        for caller in ("bad", "good", "bad", "good"):
            assert answers(caller, FAILS) == "demo"
        assert answers("other", Behaviour()) == "demo", "the failures of two are the model's own"


def test_one_callers_failures_make_nobody_elses_weigh_more() -> None:
    breakers = CircuitBreakers()
    for _ in range(5 * FAILURES):
        breakers.failed("a", "bad")
    breakers.failed("a", "good")
    assert [breakers.lets_through("a", caller) for caller in ("bad", "good", "other")] == [False, True, True]
    breakers.failed("a", "good")
    assert not breakers.lets_through("a", "other")


def test_one_failed_connection_beside_one_callers_failures_concerns_nobody_else() -> None:
    breakers = CircuitBreakers()
    for _ in range(FAILURES):
        breakers.failed("a", "bad")
    breakers.failed("a", "good", unreached=True)
    assert breakers.lets_through("a", "other")
    breakers.failed("a", "bad", unreached=True)
    assert not breakers.lets_through("a", "other")


def test_an_older_call_that_is_given_up_opens_nothing_by_half() -> None:
    now = SimpleNamespace(seconds=0.0)
    breakers = CircuitBreakers(lambda: now.seconds)
    older, probe = object(), object()
    assert breakers.lets_through("a", "x", older)
    for caller in ("x", "x", "y", "y"):
        breakers.failed("a", caller)
    breakers.undecided("a", older)
    assert not breakers.lets_through("a", "x", object())
    now.seconds += SECONDS
    assert breakers.lets_through("a", "x", probe)
    breakers.undecided("a", older)
    assert not breakers.lets_through("a", "x", object())
    breakers.undecided("a", probe)
    assert breakers.lets_through("a", "x", object())


def test_a_client_that_leaves_an_older_call_does_not_let_the_next_one_through(
    ask: Callable[..., Ask], stub: Stub
) -> None:
    asked = ask()
    stub.queue(Behaviour(delay_headers=60))
    with Call(asked.url, asked.key, model="a") as older:
        assert stub.wait_until(lambda: len(stub.requests) == 1)
        assert [model_of(asked("a")) for _ in range(FAILURES)] == ["b"] * FAILURES
        older.leave()
    assert stub.requests[0].closed.wait(20)
    tried = len(stub.requests)
    deadline = time.monotonic() + 20
    while asked.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert model_of(asked("a")) == "b"
    assert len(stub.requests) == tried


def test_a_model_that_can_not_be_connected_to_is_skipped_for_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    callers = {name: {"key_sha256": hash_key(name)} for name in ("one", "other")}
    models = {
        "a": {"upstream": "openai/m", "api_base": url, "fallbacks": ["demo"]},
        "demo": {"upstream": "demo/echo"},
    }
    with running("one", models, callers=callers) as asked:
        for _ in range(FAILURES):
            assert model_of(asked("a")) == "demo"
        breakers = asked.breakers
        assert not breakers.lets_through("a", "other")


def test_the_probe_is_one_call_of_those_that_are_kept_away() -> None:
    now = SimpleNamespace(seconds=0.0)
    breakers = CircuitBreakers(lambda: now.seconds)
    for _ in range(FAILURES):
        breakers.failed("a", "bad")
    assert [breakers.lets_through("a", caller) for caller in ("bad", "good")] == [False, True]
    now.seconds += SECONDS
    assert [breakers.lets_through("a", caller) for caller in ("good", "bad", "bad")] == [True, True, False]


# The clock.


@pytest.mark.parametrize("limit", [{"requests_per_minute": 1}, {"tokens_per_minute": 1040}], ids=str)
@pytest.mark.parametrize("jump", [7200.0, -7200.0])
def test_a_wall_clock_that_jumps_frees_nobody_and_locks_nobody_out(
    key: str, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int], jump: float
) -> None:
    clock = SimpleNamespace(wall=1_800_000_000.0, now=500.0)
    clock.time, clock.monotonic = lambda: clock.wall, lambda: clock.now
    monkeypatch.setattr("app.access.process_storage.time", clock)
    models = {"demo": {"upstream": "demo/echo"}}
    said = {"messages": [{"role": "user", "content": "word " * 800}], "max_tokens": 10}
    callers = {"test": {"key_sha256": hash_key(key), **limit}}
    with running(key, models, callers=callers) as asked:
        assert asked("demo", **said).status == 200
        clock.wall += jump
        clock.now += 1
        refused = asked("demo", **said)
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        clock.now += 60
        assert asked("demo", max_tokens=10).status == 200


# --dev, and endpoints of one's own.


@pytest.fixture(scope="module")
def dev() -> Iterator[str]:
    with serve(create_app(Settings(models={"demo": {"upstream": "demo/echo"}}, default_model="demo", dev=True))) as url:  # type: ignore[dict-item]
        yield url


def status_with(url: str, *lines: str) -> int:
    """Return the status of a request with these lines after its first."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        head = "\r\n".join(["GET /v1/models HTTP/1.1", *lines, "Connection: close", "", ""])
        connection.sendall(head.encode())
        with connection.makefile("rb") as answer:
            return int(answer.readline().split()[1])


@pytest.mark.parametrize(
    "line",
    [
        "Origin: https://evil.example",
        "Forwarded: for=_hidden",
        "X-Forwarded-For: unknown",
        "X-Forwarded-Host: localhost",
        "X-Original-Forwarded-For: 192.0.2.1",
        "X-Real-IP: 192.0.2.1",
        "CF-Connecting-IP: 192.0.2.1",
        "CF-Connecting-IPv6: 2001:db8::1",
        "CF-Ray: 230b030023ae2822-SJC",
        "CDN-Loop: cloudflare",
        "True-Client-IP: 192.0.2.1",
        "Fly-Client-IP: 192.0.2.1",
        "X-Client-IP: 192.0.2.1",
        "X-Cluster-Client-IP: 192.0.2.1",
        "Fastly-Client-IP: 192.0.2.1",
        "X-Azure-ClientIP: 192.0.2.1",
        "X-Azure-SocketIP: 192.0.2.1",
        "X-Appengine-User-IP: 192.0.2.1",
        "X-Envoy-External-Address: 192.0.2.1",
        "DO-Connecting-IP: 192.0.2.1",
        "X-NF-Client-Connection-IP: 192.0.2.1",
        "WL-Proxy-Client-IP: 192.0.2.1",
        "X-Remote-Addr: 192.0.2.1",
        "X-A-Name-Of-Tomorrow: 192.0.2.1",
        "X-A-Name-Of-Tomorrow: 192.0.2.1:4711, 10.0.0.1",
        "X-A-Name-Of-Tomorrow: [2001:db8::1]:4711",
        "Via: 1.1 proxy",
        "X-ProxyUser-Ip: 192.0.2.1",
    ],
)
def test_dev_serves_nobody_who_came_by_a_proxy(dev: str, line: str) -> None:
    assert status_with(dev, "Host: 127.0.0.1", "Origin: http://localhost:3000", line) == 401


@pytest.mark.parametrize("host", ["evil.example", "localhost"])
def test_dev_serves_nobody_with_two_hosts(dev: str, host: str) -> None:
    assert status_with(dev, "Host: 127.0.0.1", f"Host: {host}") == 400


@pytest.mark.parametrize(
    "line",
    [
        "User-Agent: OpenAI/Python 3.54.0",
        "X-Stainless-Runtime-Version: 3.11.7",
        "Referer: http://127.0.0.1:8000/playground",
        'Sec-CH-UA: "Chromium";v="130"',
        "X-Api-Key: 1",
        "X-Zip: 12345",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ],
)
def test_dev_serves_this_machines_own_programs(dev: str, line: str) -> None:
    assert status_with(dev, "Host: 127.0.0.1", line) == 200


def test_an_endpoint_that_asks_for_its_caller_needs_a_key_even_without_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = APIRouter()

    @routes.get("/own/who")
    async def who(caller: CurrentCaller) -> str:
        return caller.name

    monkeypatch.setattr(own, "public_routers", [routes], raising=False)
    settings = Settings(models={"demo": {"upstream": "demo/echo"}}, default_model="demo")  # type: ignore[dict-item]
    with TestClient(create_app(settings)) as client:
        refused = client.get("/own/who")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "callers add" in refused.json()["detail"]
        assert client.get("/v1/models").status_code == 200
