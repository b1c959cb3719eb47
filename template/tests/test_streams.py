"""A stream is never silent, never cut unnoticed, never buffered without bound, and never outlives its client."""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.config import Settings
from app.http import event_stream
from app.main import create_app
from tests import session
from tests.serving import serve
from tests.stub import TEXT, Behaviour, Stub
from tests.wire import Call, chunks_of, text_of

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")
ways = pytest.mark.parametrize("way", ["direct", "litellm"])

AT_ONCE = 10
"""Seconds, generous: an upstream call is closed some milliseconds after its client has left."""


class Server:
    """An app in this process, so that a test can set how long it waits, with a provider of its own."""

    def __init__(self, url: str, key: str, stub: Stub) -> None:
        self.url = url
        self.key = key
        self.stub = stub

    def stream(self, model: str, behaviour: Behaviour | None = None, **fields: Any) -> Call:
        """Ask for a stream of a provider that behaves so."""
        return self.ask(model, behaviour, stream=True, **fields)

    def ask(self, model: str, behaviour: Behaviour | None = None, **fields: Any) -> Call:
        """Ask a provider that behaves so."""
        self.stub.default = behaviour or Behaviour()
        return Call(self.url, self.key, model=model, **fields)


@contextmanager
def running(key: str, **timeouts: float) -> Iterator[Server]:
    with Stub() as stub:
        at_stub = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}
        via_litellm = at_stub | {"protocol": "litellm"}
        given: dict[str, Any] = {
            "models": {
                "direct": at_stub,
                "litellm": via_litellm,
                "direct-first": at_stub | {"fallbacks": ["direct"]},
                "litellm-first": via_litellm | {"fallbacks": ["litellm"]},
            },
            "default_model": "direct",
            "callers": {"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest(), "metrics": True}},
            "retries": 0,
            "timeouts": timeouts,
        }
        app = create_app(Settings(**given))
        with serve(app) as url:
            while app.state.upstreams.failing():
                time.sleep(0.05)
            yield Server(url, key, stub)


@pytest.fixture(scope="module")
def server(key: str) -> Iterator[Server]:
    """A server that is as patient as the default settings."""
    with running(key) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(key: str) -> Iterator[Server]:
    """A server that waits a second for a stream's next event."""
    with running(key, idle=1) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's response starts without its first event after 0.05 s, and has a ping for each 0.05 s of silence."""
    monkeypatch.setattr(event_stream, "FIRST_EVENT", 0.05)
    monkeypatch.setattr(event_stream, "PING_EVERY", 0.05)


def error_of(events: list[str]) -> Any:
    """Return the error that ends a stream."""
    *before, error, done = events
    assert done == "data: [DONE]"
    assert not any('"error"' in event or "[DONE]" in event for event in before)
    return json.loads(error.removeprefix("data: "))


# 1. The first event is awaited.


@ways
def test_a_response_starts_with_its_first_event(server: Server, way: str) -> None:
    asked_at = time.monotonic()
    with server.stream(way, Behaviour(delay_first=0.3, stall_after=2)) as call:
        assert call.status == 200
        assert next(call.events).startswith("data: ")
        assert time.monotonic() - asked_at >= 0.3


@ways
def test_an_error_in_place_of_the_first_event_is_a_real_status(server: Server, way: str) -> None:
    with server.stream(way, Behaviour(delay_first=0.1, error_at=0)) as call:
        assert call.status == 502
        assert call.headers["content-type"] == "application/problem+json"
        assert call.json["error"]["code"] == "provider_error"


@ways
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "behaviour", [Behaviour(delay_headers=0.5), Behaviour(delay_first=0.5)], ids=["late headers", "late event"]
)
def test_a_response_starts_with_pings_where_the_first_event_is_late(
    server: Server, way: str, behaviour: Behaviour
) -> None:
    with server.stream(way, behaviour) as call:
        assert call.status == 200
        assert next(call.events) == ": ping"
        assert "x-model" not in call.headers, "nobody knows yet which model will answer"
        events = list(call.events)
    assert events.count(": ping") >= 2
    assert text_of(events) == TEXT


@ways
@pytest.mark.usefixtures("impatient")
def test_an_error_after_pings_is_an_event(server: Server, way: str) -> None:
    with server.stream(way, Behaviour(delay_headers=0.5, status=429)) as call:
        assert call.status == 200
        events = list(call.events)
    assert events[0] == ": ping"
    assert error_of(events)["status"] == 429


@ways
@pytest.mark.usefixtures("impatient")
def test_a_fallback_may_still_answer_after_pings(server: Server, way: str) -> None:
    server.stub.queue(Behaviour(delay_headers=0.5, status=503))
    with server.stream(f"{way}-first") as call:
        events = list(call.events)
    assert events[0] == ": ping"
    assert text_of(events) == TEXT


# 2. After it, an error is an event.


@ways
def test_an_error_in_mid_stream_is_the_last_event_before_done(server: Server, way: str) -> None:
    with server.stream(way, Behaviour(cut_after=4, pace=0.01)) as call:
        assert call.status == 200
        body = error_of(list(call.events))
    message = f"The answer of model {way!r} was cut off by its provider."
    assert body == {
        "type": "about:blank",
        "title": "Bad Gateway",
        "status": 502,
        "detail": message,
        "instance": f"urn:request:{call.headers['x-request-id']}",
        "error": {"message": message, "type": "server_error", "param": None, "code": "provider_error"},
    }


# 3. A stream that is cut off is an error; with n choices, each needs its end.


@pytest.mark.parametrize("done", [True, False], ids=["[DONE]", "no [DONE]"])
def test_a_stream_of_two_choices_is_whole_when_both_have_ended(server: Server, done: bool) -> None:
    with server.stream("direct", Behaviour(done=done), n=2) as call:
        chunks = chunks_of(list(call.events))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content") or "" for choice in own) == TEXT
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]


@pytest.mark.parametrize("finished", [0, 1])
@pytest.mark.parametrize("done", [True, False], ids=["[DONE]", "no [DONE]"])
def test_a_stream_that_leaves_one_of_two_choices_open_is_cut_off(server: Server, finished: int, done: bool) -> None:
    with server.stream("direct", Behaviour(finished=finished, done=done), n=2) as call:
        assert "cut off" in error_of(list(call.events))["detail"]


def test_two_choices_are_not_streamed_through_litellm_which_loses_an_end(server: Server) -> None:
    with server.stream("litellm", n=2) as call:
        assert (call.status, call.json["error"]["param"]) == (422, "n")


@ways
@pytest.mark.parametrize("behaviour", [Behaviour(finished=0, done=False), Behaviour(cut_after=0)], ids=["quiet", "cut"])
def test_a_stream_without_its_end_is_cut_off(server: Server, way: str, behaviour: Behaviour) -> None:
    with server.stream(way, behaviour) as call:
        if behaviour.cuts:
            assert (call.status, call.json["error"]["code"]) == (502, "provider_error")
        else:
            assert "cut off" in error_of(list(call.events))["detail"]


def test_the_events_of_a_direct_stream_pass_byte_for_byte(server: Server) -> None:
    body = (
        b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"\\u4e16  x"}}],"x_own" : [1.50, 2e3]}\n\n'
        b'event: message\r\nid: 7\r\ndata:{"choices":[{"delta":{"reasoning_content":"\xe4\xb8\x96"}}]}\r\n\r\n'
        b'data: {"choices":[{"index":0,"delta":{},\ndata: "finish_reason":"stop"}]}\n\n'
        b"data: [DONE]\n\n"
    )
    behaviour = Behaviour(
        body=b": keep-alive\n\n" + body.replace(b"event:", b": alive\n\nevent:"),
        headers={"content-type": "text/event-stream"},
        packet=11,
    )
    with server.stream("direct", behaviour) as call:
        assert call.body == body


@pytest.mark.parametrize("way", ["direct", "litellm"])
def test_a_client_that_leaves_after_the_end_has_not_left(server: Server, way: str) -> None:
    """As OpenAI's SDKs do at `[DONE]`, whatever the provider does with its connection."""
    events = 2 + len(TEXT.split()) + 2  # its role and its end, its words, its usage and [DONE]
    before = settled(server, way)
    with server.stream(way, Behaviour(stall_after=events)) as call:
        while next(call.events) != "data: [DONE]":
            pass
    assert settled(server, way) == before | {"200": before.get("200", 0) + 1}


def settled(server: Server, model: str) -> dict[str, float]:
    """Wait until no request but this one is in flight; return how many a model has answered, by their status."""
    pattern = re.compile(r'^http_request_duration_seconds_count\{model="(.*?)",.*status="(\d+)"\} (\S+)$', re.MULTILINE)
    for _ in range(2000):
        page = session.page(server.url, server.key)
        if "\nhttp_requests_in_flight 1.0\n" in page:
            return {status: float(count) for name, status, count in pattern.findall(page) if name == model}
        time.sleep(0.01)
    raise AssertionError(page)


# 4. The client leaves, and the upstream call is closed.


STREAM_MOMENTS = {
    "while it flows": Behaviour(repeat=1000, pace=0.001),
    "while it is silent": Behaviour(stall_after=3),
    "before its first event": Behaviour(stall_after=0),
    "before its headers": Behaviour(delay_headers=60),
}
ANSWER_MOMENTS = {"before its end": Behaviour(stall_after=2), "before its headers": Behaviour(delay_headers=60)}


def leave(server: Server, way: str, behaviour: Behaviour, *, stream: bool) -> float:
    """Leave in the midst of an answer; return the seconds until the upstream call was closed."""
    stub, before = server.stub, len(server.stub.requests)
    with server.ask(way, behaviour, stream=stream) as call:
        assert stub.wait_until(lambda: len(stub.requests) > before)
        if stream and behaviour.stall_after != 0 and not behaviour.delay_headers:
            next(call.events)
    left_at = time.monotonic()
    upstream = stub.requests[before]
    assert upstream.closed.wait(20), "the upstream call goes on"
    assert upstream.closed_at is not None
    return upstream.closed_at - left_at


@ways
@pytest.mark.parametrize("moment", STREAM_MOMENTS)
def test_a_client_that_leaves_a_stream_takes_the_upstream_call_along(server: Server, way: str, moment: str) -> None:
    for _ in range(100 if way == "direct" else 10):
        assert leave(server, way, STREAM_MOMENTS[moment], stream=True) < AT_ONCE
    with server.stream(way) as call:
        assert text_of(list(call.events)) == TEXT


@ways
@pytest.mark.parametrize("moment", ANSWER_MOMENTS)
def test_a_client_that_leaves_an_answer_takes_the_upstream_call_along(server: Server, way: str, moment: str) -> None:
    for _ in range(100 if way == "direct" else 10):
        assert leave(server, way, ANSWER_MOMENTS[moment], stream=False) < AT_ONCE
    with server.ask(way) as call:
        assert call.json["content"] == TEXT


@ways
def test_a_model_may_repeat_itself(server: Server, way: str) -> None:
    with server.stream(way, Behaviour(text="-----", repeat=200)) as call:
        assert text_of(list(call.events)) == "-----" * 200


# 5. Pings while the model is silent.


@ways
@pytest.mark.usefixtures("impatient")
def test_pings_fill_a_silence_and_do_not_prolong_it(hasty: Server, way: str) -> None:
    with hasty.stream(way, Behaviour(stall_after=3)) as call:
        assert call.status == 200
        started_at = time.monotonic()
        events = list(call.events)
        assert 0.9 < time.monotonic() - started_at < 15
    assert events.count(": ping") >= 2
    error = error_of([event for event in events if event != ": ping"])
    assert (error["status"], error["error"]["code"]) == (504, "provider_timeout")
    assert error["detail"] == f"Model {way!r} sent nothing more for 1 s (timeouts.idle)."


# 6. Usage goes to those who asked for it.


@ways
def test_usage_is_the_last_chunk_for_those_who_asked(server: Server, way: str) -> None:
    with server.stream(way, stream_options={"include_usage": True}) as call:
        *chunks, last = chunks_of(list(call.events))
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (7, 8)
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in chunks)


@ways
@pytest.mark.parametrize("fields", [{}, {"stream_options": {"include_usage": False}}], ids=["left out", "declined"])
def test_usage_is_for_nobody_else_but_asked_for_upstream(server: Server, way: str, fields: dict[str, Any]) -> None:
    with server.stream(way, **fields) as call:
        chunks = chunks_of(list(call.events))
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in chunks)
    assert server.stub.requests[-1].body["stream_options"]["include_usage"] is True


# 7. Headers.


@ways
def test_headers_keep_proxies_from_holding_a_stream_back(server: Server, way: str) -> None:
    with server.stream(way) as call:
        assert call.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert call.headers["cache-control"] == "no-cache"
        assert call.headers["x-accel-buffering"] == "no"
        assert call.headers["x-model"] == way
        assert call.headers["x-request-id"]
