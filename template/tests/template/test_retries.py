"""What fails before its first byte is tried again, in good time, on the same model and then on its fallbacks."""

import contextlib
import hashlib
import socket
from collections.abc import Callable, Iterator
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from app.errors import ProviderError
from app.llm import circuit_breaker, failures, retries
from app.llm.circuit_breaker import CircuitBreakers
from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import Ask, request_line, row, running
from tests.wire import Call, chunks_of, text_of

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")
ways = pytest.mark.parametrize("way", ["direct", "litellm"])
kinds = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

Start = Callable[..., Ask]


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)


@pytest.fixture
def second() -> Iterator[Stub]:
    """Another provider."""
    with Stub() as stub:
        yield stub


@pytest.fixture
def third() -> Iterator[Stub]:
    """And another one."""
    with Stub() as stub:
        yield stub


@pytest.fixture
def start(key: str) -> Iterator[Start]:
    """Serve models that are given until the test ends."""
    with contextlib.ExitStack() as servers:

        def start(models: dict[str, Any], **given: Any) -> Ask:
            return servers.enter_context(running(key, models, **given))

        yield start


@pytest.fixture(scope="module")
def provider() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def shared(key: str, provider: Stub) -> Iterator[Ask]:
    """A server for many tests, with two retries; its models have no fallbacks, and so no memory."""
    with running(key, {"direct": row(provider), "litellm": row(provider, protocol="litellm")}, retries=2) as ask:
        yield ask


@pytest.fixture
def ask(shared: Ask, provider: Stub) -> Ask:
    """Ask a model of a provider that has received nothing yet and will answer well."""
    provider.requests.clear()
    provider.default = Behaviour()
    return shared


def text(call: Call) -> str:
    """Return the text of a good answer."""
    assert call.status == 200, call.body
    if call.headers["content-type"].startswith("text/event-stream"):
        return text_of(list(call.events))
    content: str = call.json["content"]
    return content


def code(call: Call) -> tuple[int, str]:
    """Return the status and the code of an error."""
    return call.status, call.json["error"]["code"]


# What is tried again, and what isn't.

PASSING = {
    "408": Behaviour(status=408),
    "409": Behaviour(status=409),
    "429": Behaviour(status=429),
    "500": Behaviour(status=500),
    "502": Behaviour(status=502, body=b"<html>Bad Gateway</html>", headers={"content-type": "text/html"}),
    "503": Behaviour(status=503),
    "529": Behaviour(status=529),
    "no answer": Behaviour(status=0),
    "a reset connection": Behaviour(status=0, reset=True),
    "a cut before the first byte": Behaviour(cut_after=0),
    "an error in place of an answer": Behaviour(error_at=0),
}
LASTING = {
    "400": Behaviour(status=400),
    "401": Behaviour(status=401),
    "402": Behaviour(status=402),
    "403": Behaviour(status=403),
    "404": Behaviour(status=404),
    "413": Behaviour(status=413),
    "422": Behaviour(status=422),
    "429 for want of credit": Behaviour(status=429, code="insufficient_quota"),
}


@ways
@kinds
@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again(ask: Ask, provider: Stub, way: str, stream: bool, name: str) -> None:
    provider.queue(PASSING[name])
    assert text(ask(way, stream=stream)) == TEXT
    assert len(provider.requests) == 2


@ways
@kinds
@pytest.mark.parametrize("name", LASTING)
def test_what_will_not_pass_is_not_tried_again(ask: Ask, provider: Stub, way: str, stream: bool, name: str) -> None:
    provider.default = LASTING[name]
    assert ask(way, stream=stream).status in (400, 502)
    assert len(provider.requests) == 1


@ways
@kinds
def test_retries_come_to_an_end(ask: Ask, provider: Stub, way: str, stream: bool) -> None:
    provider.default = Behaviour(status=500)
    assert code(ask(way, stream=stream)) == (502, "provider_error")
    assert len(provider.requests) == 3


@ways
def test_nothing_is_tried_again_after_the_first_byte(ask: Ask, provider: Stub, way: str) -> None:
    provider.default = Behaviour(cut_after=4, pace=0.01)
    assert '"error"' in list(ask(way, stream=True).events)[-2]
    assert len(provider.requests) == 1


# Pauses.


def test_pauses_double_up_to_a_limit_and_each_is_up_to_half_shorter_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.4)
    for attempt, longest in enumerate([0.4, 0.8, 1.6, 3.2, 5, 5]):
        pauses = [retries.pause_after(ProviderError("It failed."), attempt) or 0 for _ in range(200)]
        assert longest / 2 <= min(pauses) < longest * 0.6
        assert longest * 0.9 < max(pauses) <= longest


@ways
def test_a_retry_waits(ask: Ask, provider: Stub, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.4)
    provider.queue(Behaviour(status=500))
    call = ask(way)
    assert seconds_between_two_requests(provider) >= 0.2
    assert text(call) == TEXT


@ways
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_in_seconds_is_obeyed(ask: Ask, provider: Stub, way: str, status: int) -> None:
    provider.queue(Behaviour(status=status, headers={"retry-after": "0.2"}))
    call = ask(way)
    assert seconds_between_two_requests(provider) >= 0.2
    assert text(call) == TEXT


@ways
def test_retry_after_as_a_date_is_obeyed(ask: Ask, provider: Stub, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "time", SimpleNamespace(time=lambda: 1_000_000_000.7))
    soon = formatdate(1_000_000_001, usegmt=True)
    provider.queue(Behaviour(status=429, headers={"retry-after": soon}))
    call = ask(way)
    assert seconds_between_two_requests(provider) >= 0.3
    assert text(call) == TEXT


@ways
@kinds
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_is_too_long_is_left_to_the_client(
    ask: Ask, provider: Stub, way: str, stream: bool, status: int
) -> None:
    provider.default = Behaviour(status=status, headers={"retry-after": "11"})
    call = ask(way, stream=stream)
    assert code(call) == ((429, "provider_rate_limited") if status == 429 else (502, "provider_error"))
    assert call.headers["retry-after"] == "11"
    assert len(provider.requests) == 1


def seconds_between_two_requests(stub: Stub) -> float:
    assert stub.wait_until(lambda: len(stub.requests) == 2)
    first, second = stub.requests
    return second.received_at - first.received_at


# Time.


@pytest.fixture(scope="module")
def full() -> Iterator[str]:
    """The address of a server whose queue of new connections is full, so that none is made (Linux)."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.fixture(scope="module")
def far(key: str, full: str) -> Iterator[Ask]:
    """A server whose models are far: nobody takes their connections, and it waits for one only briefly."""
    models = {"direct": row_at(full), "litellm": row_at(full, protocol="litellm")}
    with running(key, models, timeouts={"connect": 0.2}) as ask:
        yield ask


def row_at(api_base: str, **given: Any) -> dict[str, Any]:
    return {"upstream": "openai/gpt-4o", "api_base": api_base} | given


@ways
@kinds
def test_a_connection_is_waited_for_so_long(far: Ask, way: str, stream: bool) -> None:
    late = far(way, stream=stream)
    assert code(late) == (504, "provider_timeout")
    assert late.json["detail"].startswith(f"The provider of model {way!r} did not accept a connection")
    assert late.json["detail"].endswith("(timeouts.connect).")


# Only the limit that is to be reached is short: all that has to arrive before it has all the time it needs.


@ways
@pytest.mark.parametrize("behaviour", [Behaviour(delay_headers=60), Behaviour(stall_after=0)], ids=["headers", "event"])
def test_a_first_event_is_waited_for_so_long(ask: Ask, provider: Stub, way: str, behaviour: Behaviour) -> None:
    provider.default = behaviour
    with ask.waiting(first_token=0.3):
        late = ask(way, stream=True)
        assert code(late) == (504, "provider_timeout")
    assert late.json["detail"] == f"Model {way!r} sent nothing within 0.3 s (timeouts.first_token)."


@ways
def test_a_next_event_is_waited_for_so_long(ask: Ask, provider: Stub, way: str) -> None:
    provider.default = Behaviour(stall_after=3)
    with ask.waiting(idle=0.3):
        error = chunks_of(list(ask(way, stream=True).events))[-1]
    assert (error["status"], error["error"]["code"]) == (504, "provider_timeout")
    assert error["detail"] == f"Model {way!r} sent nothing more for 0.3 s (timeouts.idle)."


def test_a_whole_stream_is_waited_for_so_long(ask: Ask, provider: Stub) -> None:
    """Of both ways at once, since the first event has to arrive within the limit, which therefore isn't short."""
    provider.default = Behaviour(repeat=1000, pace=0.1)
    with ask.waiting(total=2):
        calls = {way: ask(way, stream=True) for way in ("direct", "litellm")}
        for way, call in calls.items():
            error = chunks_of(list(call.events))[-1]
            assert (error["status"], error["error"]["code"]) == (504, "provider_timeout")
            assert error["detail"] == f"Model {way!r} did not finish within 2 s (timeouts.total)."


@ways
@pytest.mark.parametrize("behaviour", [Behaviour(delay_headers=60), Behaviour(stall_after=2)], ids=["headers", "rest"])
def test_a_whole_answer_is_waited_for_so_long(ask: Ask, provider: Stub, way: str, behaviour: Behaviour) -> None:
    provider.default = behaviour
    with ask.waiting(total=0.3):
        late = ask(way)
        assert code(late) == (504, "provider_timeout")
    assert late.json["detail"] == f"Model {way!r} did not finish within 0.3 s (timeouts.total)."


@kinds
def test_total_includes_retries_and_pauses(start: Start, stub: Stub, stream: bool) -> None:
    ask = start({"m": row(stub)}, retries=10, timeouts={"total": 1})
    stub.default = Behaviour(status=500, delay_headers=0.2)
    assert code(ask("m", stream=stream)) in [(502, "provider_error"), (504, "provider_timeout")]
    assert 2 <= len(stub.requests) <= 5


def test_a_wait_that_total_does_not_allow_is_left_to_the_client(start: Start, stub: Stub) -> None:
    ask = start({"m": row(stub)}, retries=2, timeouts={"total": 4})
    stub.default = Behaviour(status=429, headers={"retry-after": "5"})
    call = ask("m")
    assert (code(call), call.headers["retry-after"]) == ((429, "provider_rate_limited"), "5")
    assert len(stub.requests) == 1


def test_when_total_is_over_no_fallback_is_tried_or_blamed(start: Start, stub: Stub, second: Stub) -> None:
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)}, timeouts={"total": 0.3})
    stub.default = Behaviour(delay_headers=60)
    call = ask("a")
    assert call.json["detail"] == "Model 'a' did not finish within 0.3 s (timeouts.total)."
    assert second.requests == []


# Fallbacks.


@kinds
def test_fallbacks_are_tried_in_order(start: Start, stub: Stub, second: Stub, third: Stub, stream: bool) -> None:
    ask = start({"a": row(stub, fallbacks=["b", "c"]), "b": row(second), "c": row(third)}, retries=1)
    stub.default = second.default = Behaviour(status=503)
    with structlog.testing.capture_logs() as lines:
        call = ask("a", stream=stream)
        assert text(call) == TEXT
        line = request_line(lines)
    assert [len(provider.requests) for provider in (stub, second, third)] == [2, 2, 1]
    assert call.headers["x-model"] == "c"
    assert (line["model"], line["tried"]) == ("c", ["a", "a", "b", "b", "c"])


@kinds
def test_a_model_without_a_key_falls_back(start: Start, stub: Stub, stream: bool) -> None:
    ask = start({"a": {"upstream": "openai/gpt-4o", "fallbacks": ["b"]}, "b": row(stub)})
    with structlog.testing.capture_logs() as lines:
        call = ask("a", stream=stream)
        assert text(call) == TEXT
        line = request_line(lines)
    assert call.headers["x-model"] == "b"
    assert line["tried"] == ["a", "b"]


@kinds
@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_what_is_no_fault_of_the_request_falls_back(
    start: Start, stub: Stub, second: Stub, stream: bool, status: int
) -> None:
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)})
    stub.default = Behaviour(status=status, headers={"retry-after": "60"})
    assert text(ask("a", stream=stream)) == TEXT


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_request_does_not_fall_back(start: Start, stub: Stub, second: Stub, status: int) -> None:
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)})
    stub.default = Behaviour(status=status)
    assert ask("a").status == 400
    assert second.requests == []


def test_a_fallback_that_refuses_does_not_make_the_request_wrong(start: Start, stub: Stub, second: Stub) -> None:
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)})
    stub.default, second.default = Behaviour(status=503), Behaviour(status=400)
    assert code(ask("a")) == (502, "provider_error")


def test_nothing_falls_back_after_the_first_byte(start: Start, stub: Stub, second: Stub) -> None:
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)})
    stub.default = Behaviour(cut_after=4, pace=0.01)
    assert '"error"' in list(ask("a", stream=True).events)[-2]
    assert second.requests == []


def test_a_caller_falls_back_to_its_own_models_only(start: Start, key: str, stub: Stub, second: Stub) -> None:
    caller = {"key_sha256": hashlib.sha256(key.encode()).hexdigest(), "models": ["a"]}
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)}, callers={"test": caller})
    stub.default = Behaviour(status=503)
    assert code(ask("a")) == (502, "provider_error")
    assert second.requests == []


def test_embeddings_are_tried_again_and_fall_back_too(start: Start, stub: Stub, second: Stub) -> None:
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)}, retries=1)
    stub.default = Behaviour(status=503)
    call = ask("a", path="/v1/embeddings", input="Hello")
    assert call.status == 200
    assert call.headers["x-model"] == "b"
    assert [len(provider.requests) for provider in (stub, second)] == [2, 1]


# Circuit breakers.


class Now:
    """A clock that stands still."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Now:
    """The clock of the circuit breakers of every server that starts."""
    now = Now()
    monkeypatch.setattr(retries, "CircuitBreakers", lambda: CircuitBreakers(now))
    return now


def test_a_model_is_left_alone_after_failures_in_a_row() -> None:
    models = CircuitBreakers(Now())
    for _ in range(circuit_breaker.FAILURES):
        assert models.lets_through("a")
        models.failed("a")
    assert not models.lets_through("a")
    assert models.lets_through("b")


def test_an_answer_ends_the_row_of_failures() -> None:
    models = CircuitBreakers(Now())
    for _ in range(circuit_breaker.FAILURES - 1):
        models.failed("a")
    models.succeeded("a")
    models.failed("a")
    assert models.lets_through("a")


def test_one_probe_at_a_time_brings_a_model_back() -> None:
    now = Now()
    models = CircuitBreakers(now)
    for _ in range(circuit_breaker.FAILURES):
        models.failed("a")
    now.seconds += circuit_breaker.SECONDS - 1
    assert not models.lets_through("a")
    now.seconds += 1
    assert [models.lets_through("a") for _ in range(3)] == [True, False, False]
    models.failed("a")
    assert not models.lets_through("a"), "the probe has failed"
    now.seconds += circuit_breaker.SECONDS
    assert models.lets_through("a")
    models.succeeded("a")
    assert [models.lets_through("a") for _ in range(3)] == [True, True, True]


def test_a_model_that_keeps_failing_is_skipped_until_a_probe_is_answered(
    start: Start, stub: Stub, second: Stub, clock: Now
) -> None:
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)})
    stub.default = Behaviour(status=503)
    for _ in range(5):
        assert text(ask("a")) == TEXT
    assert len(stub.requests) == circuit_breaker.FAILURES
    stub.default = Behaviour()
    clock.seconds += circuit_breaker.SECONDS
    assert [ask("a").headers["x-model"] for _ in range(3)] == ["a", "a", "a"]


def test_a_model_without_fallbacks_is_never_skipped(start: Start, stub: Stub) -> None:
    ask = start({"a": row(stub)})
    stub.default = Behaviour(status=503)
    for _ in range(circuit_breaker.FAILURES + 2):
        assert ask("a").status == 502
    stub.default = Behaviour()
    assert text(ask("a")) == TEXT


def test_when_all_are_left_alone_all_are_tried(start: Start, stub: Stub, second: Stub) -> None:
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)})
    stub.default = second.default = Behaviour(status=503)
    for _ in range(circuit_breaker.FAILURES + 1):
        assert ask("a").status == 502
    assert [len(provider.requests) for provider in (stub, second)] == [circuit_breaker.FAILURES + 1] * 2
    second.default = Behaviour()
    assert ask("a").headers["x-model"] == "b"


def test_a_fallback_that_was_not_needed_has_not_been_probed(start: Start, stub: Stub, second: Stub, clock: Now) -> None:
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)})
    stub.default = second.default = Behaviour(status=503)
    for _ in range(circuit_breaker.FAILURES):
        assert ask("a").status == 502
    stub.default = second.default = Behaviour()
    clock.seconds += circuit_breaker.SECONDS
    assert ask("a").headers["x-model"] == "a"
    stub.default = Behaviour(status=503)
    assert ask("a").headers["x-model"] == "b"


@pytest.mark.parametrize("status", [400, 422])
def test_a_fallback_that_refuses_the_request_is_no_fault_of_the_request(
    start: Start, stub: Stub, second: Stub, status: int
) -> None:
    """Not even while the model that was asked for is skipped, so that the fallback is tried first."""
    ask = start({"a": row(stub, fallbacks=["b"]), "b": row(second)})
    stub.default, second.default = Behaviour(status=503), Behaviour(status=status)
    codes = [code(ask("a")) for _ in range(circuit_breaker.FAILURES + 2)]
    assert codes == [(502, "provider_error")] * len(codes)
    assert len(stub.requests) == circuit_breaker.FAILURES


def test_a_call_that_is_cancelled_leaves_a_half_open_breaker_to_the_next_call() -> None:
    now = SimpleNamespace(seconds=0.0)
    breakers = CircuitBreakers(lambda: now.seconds)
    for _ in range(circuit_breaker.FAILURES):
        breakers.failed("a")
    now.seconds += circuit_breaker.SECONDS
    assert [breakers.lets_through("a") for _ in range(2)] == [True, False]
    breakers.undecided("a")
    assert [breakers.lets_through("a") for _ in range(2)] == [True, False]
