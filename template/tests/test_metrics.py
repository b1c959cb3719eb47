"""`/metrics` shows what has happened, exactly, under names from the tables alone, to those who may see it."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

import app.llm.circuit_breaker
from app.access.callers import hash_key
from app.config import Settings
from app.main import create_app
from tests import session
from tests.conftest import KEY, MakeSettings, Serve
from tests.serving import Process, free_port, serve
from tests.stub import Behaviour, Stub
from tests.wire import CHAT, Call


def number(url: str, *sample: str) -> float | None:
    """Return one of the numbers that are shown."""
    return session.shown(url, KEY).get(sample)


@pytest.fixture(scope="module")
def played() -> Iterator[str]:
    """A server after the session."""
    with Stub() as stub, serve(create_app(Settings(**session.settings(stub)))) as url:
        session.play(url, stub)
        yield url


def test_a_session_shows_every_number_that_it_implies(played: str) -> None:
    expected = session.implied()
    assert session.shown_once_settled(played, expected) == expected


def test_times_are_in_seconds_and_in_buckets_up_to_their_count(played: str) -> None:
    families = {f.name: f for f in text_string_to_metric_families(session.page(played))}
    for name in ("http_request_duration_seconds", "llm_time_to_first_chunk_seconds", "llm_time_per_chunk_seconds"):
        samples = families[name].samples
        counts = [s.value for s in samples if s.name == f"{name}_count"]
        assert counts == [s.value for s in samples if s.labels.get("le") == "+Inf"]
        assert 0 < sum(s.value for s in samples if s.name == f"{name}_sum") < 60


def test_nothing_that_a_client_sent_is_a_label(played: str) -> None:
    text = session.page(played)
    assert not [sent for sent in ("no-such-model", "nowhere", "Hello", "sk-app", "wrong") if sent in text]


def test_calls_in_flight_are_counted_while_they_last(
    settings: MakeSettings, serve: Serve, stub: Stub, key: str
) -> None:
    url = serve(settings())
    stub.default = Behaviour(stall_after=3)
    with Call(url, key, model="gpt-4o", stream=True) as call:
        next(call.events)
        assert number(url, "llm_calls_in_flight", "gpt-4o") == 1
        assert number(url, "http_requests_in_flight") == 2
    assert stub.wait_until(lambda: stub.in_flight == 0)
    deadline = time.monotonic() + 30
    while number(url, "llm_calls_in_flight", "gpt-4o") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert number(url, "llm_calls_in_flight", "gpt-4o") == 0


def test_a_model_that_cools_down_is_shown_until_it_answers(
    settings: MakeSettings, serve: Serve, stub: Stub, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.llm.circuit_breaker, "SECONDS", 0.1)
    at_stub = {"upstream": "gpt-4o", "api_base": f"{stub.url}/v1"}
    models = {"gpt-4o": at_stub | {"fallbacks": ["demo"]}, "demo": {"upstream": "demo/echo"}}
    url = serve(settings(models=models))

    def ask() -> None:
        with Call(url, key, model="gpt-4o") as call:
            assert call.status == 200

    stub.default = Behaviour(status=500)
    for failed in range(1, app.llm.circuit_breaker.FAILURES + 1):
        ask()
        assert number(url, "llm_model_cooling", "gpt-4o") == (failed == app.llm.circuit_breaker.FAILURES)
    assert number(url, "llm_fallbacks_total", "gpt-4o") == app.llm.circuit_breaker.FAILURES
    stub.default = Behaviour()
    time.sleep(0.2)
    ask()
    assert number(url, "llm_model_cooling", "gpt-4o") == 0


def test_a_limit_storage_that_is_down_is_shown(settings: MakeSettings, serve: Serve, key: str) -> None:
    caller = {"key_sha256": hash_key(key), "requests_per_minute": 10, "metrics": True}
    url = serve(settings(limit_storage="async+valkey://127.0.0.1:9", callers={"test": caller}))
    assert number(url, "limit_storage_up") == 1
    with Call(url, key, model="demo") as call:
        assert call.status == 200
    assert number(url, "limit_storage_up") == 0


@pytest.mark.parametrize(("may_read", "status"), [(True, 200), (False, 403)])
def test_metrics_are_for_callers_that_may_read_them(
    settings: MakeSettings, serve: Serve, headers: dict[str, str], key: str, may_read: bool, status: int
) -> None:
    """From this machine too: a proxy on it passes on what it wants, and need not say so."""
    caller: Any = {"key_sha256": hash_key(key), "metrics": may_read}
    url = serve(settings(callers={"prometheus": caller}))
    assert httpx2.get(f"{url}/metrics", timeout=60).status_code == 401
    assert httpx2.get(f"{url}/metrics", headers=headers, timeout=60).status_code == status


def test_without_callers_metrics_are_for_nobody(settings: MakeSettings, serve: Serve) -> None:
    assert httpx2.get(f"{serve(settings(callers={}))}/metrics", timeout=60).status_code == 401


def test_dev_shows_metrics_to_this_machine(settings: MakeSettings, serve: Serve) -> None:
    assert httpx2.get(f"{serve(settings(dev=True))}/metrics", timeout=60).status_code == 200


def test_on_their_own_port_metrics_need_no_key(settings: MakeSettings, serve: Serve, key: str) -> None:
    port = free_port()
    url = serve(settings(metrics_port=port))
    with Call(url, key, model="demo") as call:
        assert call.status == 200
    answer = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=60)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'llm_upstream_calls_total{model="demo",outcome="ok"} 1.0' in answer.text


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("GET", "/metrics", "localhost", 200),
        ("GET", "/", "localhost", 404),
        ("GET", "/v1/models", "localhost", 404),
        ("POST", "/metrics", "localhost", 404),
        ("GET", "/metrics", "evil.example", 403),
        ("GET", "/metrics", "[", None),
    ],
)
def test_their_own_port_shows_metrics_alone_and_to_this_machine_alone(
    settings: MakeSettings, serve: Serve, method: str, path: str, host: str, status: int | None
) -> None:
    port = free_port()
    serve(settings(metrics_port=port))
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            words = answer.read().split(b" ")
    assert (int(words[1]) if len(words) > 1 else None) == status


def test_their_own_port_must_be_another() -> None:
    with pytest.raises(ValidationError, match="metrics_port and port are the same"):
        Settings(port=8000, metrics_port=8000)


def test_metrics_can_be_turned_off(settings: MakeSettings, serve: Serve) -> None:
    assert httpx2.get(f"{serve(settings(metrics=False))}/metrics", timeout=60).status_code == 404


def test_two_workers_show_their_sum_whichever_is_asked() -> None:
    port = free_port()
    with Process("--workers", "2", env={"APP_METRICS_PORT": str(port)}) as process:
        body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
        for _ in range(10):
            assert httpx2.post(process.url + CHAT, json=body, timeout=60).status_code == 200
        shown = {httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text for _ in range(10)}
        process.terminate()
        assert process.wait(60) == 0
    assert all('llm_upstream_calls_total{model="demo",outcome="ok"} 10.0' in page for page in shown)


def test_their_own_port_is_looked_at_before_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Process(env={"APP_METRICS_PORT": str(port)}, ready=False) as process:
            assert process.wait(60) == 1
    assert process.lines == [
        f"Settings: can't listen on 127.0.0.1:{port}: the port is in use; choose another with APP_METRICS_PORT"
    ]
