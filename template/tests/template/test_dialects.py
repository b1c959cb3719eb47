"""Responses and Messages over the network: bridged onto chat, or passed through to an upstream that speaks them."""

import base64
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import httpx2
import pytest
import structlog

from app.access.callers import hash_key
from app.access.estimate import estimate, images_in
from app.config import Settings
from app.dialects.messages import Messages, MessagesRequest
from app.dialects.responses import Responses, ResponsesRequest
from app.errors import ProviderError
from app.llm.relay import Relay
from app.llm.targets import resolve
from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import Ask, request_line, row, running
from tests.wire import Call

Json = dict[str, Any]

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
ASKED: dict[str, Json] = {
    RESPONSES: {"input": "Hello"},
    MESSAGES: {"max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]},
}
BOTH = pytest.mark.parametrize("path", ASKED)
ALL = [(path, model) for path in ASKED for model in ("bridged", "native")]
EACH = pytest.mark.parametrize(("path", "model"), ALL)
CALL = Behaviour(tool_calls=(("weather", '{"city": "Zürich"}'),))
JSON = {"content-type": "application/json"}
NAMESPACE = {"type": "namespace", "name": "web"}
FILE = {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}
WEB = {"type": "image", "source": {"type": "url", "url": "https://a.example/x.png"}}
TYPES = {"response.completed", "response.incomplete", "message_stop"}
"""Events that end a complete answer."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(autouse=True)
def clean(upstream: Stub) -> None:
    upstream.default = Behaviour()
    upstream.requests.clear()


@pytest.fixture(scope="module")
def served(upstream: Stub) -> Iterator[Ask]:
    """An app whose models lead to the stub: by chat alone, or in every dialect."""
    models = {
        "bridged": row(upstream),
        "native": row(upstream, speaks=["responses", "messages"]),
        "falls back": row(upstream, speaks=["responses", "messages"], fallbacks=["bridged"]),
        "falling back": row(upstream, speaks=["responses", "messages"], fallbacks=["bridged"]),
        "claude": {
            "upstream": "anthropic/claude-sonnet-4-5",
            "api_base": upstream.url,
            "api_key_env": "CLAUDE_KEY",
            "max_tokens_limit": 64000,
        },
        "keyless": {"upstream": "openai/gpt-4o"},
        "rare": row(upstream, requests_per_minute=1),
        "narrow": row(upstream, max_tokens_limit=50),
        "demo": {"upstream": "demo/echo"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAUDE_KEY", "sk-ant-of-ours")
        for name in ("start", "close"):
            patch.setattr(f"app.llm.via_litellm.ViaLiteLLM.{name}", _nothing)
        patch.setattr("app.llm.via_litellm.ViaLiteLLM.failing", lambda _: [])
        with running("sk-app-test", models, max_body_bytes=400_000) as ask:
            yield ask


async def _nothing(_: Any) -> None:
    """Start nothing: LiteLLM is not needed here."""


@pytest.fixture(scope="module")
def web(served: Ask) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served.url, headers={"x-api-key": "sk-app-test"}, timeout=60) as client:
        yield client


def ask(web: httpx2.Client, path: str, model: str, **fields: Any) -> httpx2.Response:
    return web.post(path, json=ASKED[path] | {"model": model} | fields)


def events(response: httpx2.Response) -> list[Json]:
    """Return the data of a stream's events, but `[DONE]`."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(data) for data in found if data != "[DONE]"]


def text_of(body: Json) -> str:
    """Return the text of a whole answer."""
    blocks = body["content"] if "content" in body else body["output"][0]["content"]
    return "".join(block["text"] for block in blocks)


def said(stream: list[Json]) -> str:
    """Return the text of a stream."""
    deltas = [event["delta"] for event in stream if event["type"].endswith("_delta") or "text.delta" in event["type"]]
    return "".join(delta if isinstance(delta, str) else delta.get("text", "") for delta in deltas)


@EACH
def test_a_model_answers_whole_and_streamed(web: httpx2.Client, upstream: Stub, path: str, model: str) -> None:
    whole = ask(web, path, model)
    assert (whole.status_code, text_of(whole.json())) == (200, TEXT)
    assert whole.headers["x-model"] == model
    stream = events(ask(web, path, model, stream=True))
    assert said(stream) == TEXT
    assert stream[-1]["type"] in TYPES
    last = path if model == "native" else "/v1/chat/completions"
    assert [request.path for request in upstream.requests] == [last, last]


@EACH
def test_a_stream_that_is_cut_is_never_complete(web: httpx2.Client, upstream: Stub, path: str, model: str) -> None:
    upstream.default = Behaviour()
    size = len(ask(web, path, model, stream=True).content)
    for place in (*range(0, size // 2, 97), *range(1, 40, 3)):
        upstream.default = Behaviour(cut_at=place)
        response = ask(web, path, model, stream=True)
        if response.status_code == 200:
            stream = events(response)
            kinds = [event["type"] for event in stream]
            if kinds[-1] in TYPES:  # the cut came after the provider's own end
                assert said(stream) == TEXT
                continue
            assert kinds[-1] in ("response.failed", "error")
            error = stream[-1]["response"]["error"] if path == RESPONSES else stream[-1]["error"]
            assert "cut off" in error["message"]
            assert not TYPES & set(kinds)
        else:
            assert response.status_code == 502


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_a_whole_answer_that_is_passed_through_keeps_its_bytes(
    web: httpx2.Client, upstream: Stub, path: str, before: bytes
) -> None:
    came = b'{"id": "1",\n "model": "m", "output": [ ], "content": [ ], "score": 1.0e2, "said": "\\u00e9\\/" }\n'
    upstream.default = Behaviour(body=before + came)
    assert ask(web, path, "native").content == came


@EACH
def test_an_error_in_mid_stream_is_the_last_event(web: httpx2.Client, upstream: Stub, path: str, model: str) -> None:
    upstream.default = Behaviour(error_at=4)
    stream = events(ask(web, path, model, stream=True))
    if path == RESPONSES:
        assert stream[-1]["type"] == "response.failed"
        assert stream[-1]["response"]["status"] == "failed"
        assert stream[-1]["response"]["error"]["code"] == "provider_error"
        assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    else:
        assert stream[-1]["type"] == "error"
        assert stream[-1]["error"]["type"] == "api_error"
        assert stream[-1]["request_id"]


LEGAL = {
    "in pieces": Behaviour(line_end="crlf", comments=True, packet=3, gzip=True),
    "with other line ends": Behaviour(line_end="cr", packet=7, transfer="close"),
    "in one large piece": Behaviour(text="x" * 500_000),
}


@pytest.mark.parametrize("how", LEGAL)
@EACH
def test_a_stream_is_whole_however_it_is_sent(
    web: httpx2.Client, upstream: Stub, path: str, model: str, how: str
) -> None:
    upstream.default = LEGAL[how]
    stream = events(ask(web, path, model, stream=True))
    assert said(stream) == LEGAL[how].said
    assert stream[-1]["type"] in TYPES


@EACH
def test_a_stream_that_falls_silent_has_failed(
    web: httpx2.Client, served: Ask, upstream: Stub, path: str, model: str
) -> None:
    upstream.default = Behaviour(stall_after=5)
    with served.waiting(idle=0.3):
        last = events(ask(web, path, model, stream=True))[-1]
    error = last["error"] if path == MESSAGES else last["response"]["error"]
    assert _as_each_client({"error": error}, path) == ("timeout_error" if path == MESSAGES else "provider_timeout")


@EACH
def test_a_stream_that_its_client_leaves_is_left_upstream(served: Ask, upstream: Stub, path: str, model: str) -> None:
    upstream.queue(Behaviour(repeat=100_000, pace=0.01))
    with Call(served.url, "sk-app-test", path, **ASKED[path], model=model, stream=True) as call:
        assert next(call.events)
    assert upstream.wait_until(lambda: upstream.in_flight == 0)


@pytest.mark.parametrize("reason", ["error", "abort"])
@BOTH
def test_an_answer_that_its_provider_has_broken_off_is_not_complete(
    web: httpx2.Client, upstream: Stub, path: str, reason: str
) -> None:
    """vLLM and SGLang say `abort`, OpenRouter `error`. Neither dialect has a word for it but failure."""
    chunks: list[Json] = [{"delta": {"content": "Hi"}}, {"delta": {}, "finish_reason": reason}]
    body = "".join(f"data: {json.dumps({'choices': [{'index': 0, **chunk}]})}\n\n" for chunk in chunks)
    streamed = Behaviour(body=f"{body}data: [DONE]\n\n".encode(), headers={"content-type": "text/event-stream"})
    for upstream.default in (streamed, replace(streamed, packet=60, pace=0.1)):
        response = ask(web, path, "bridged", stream=True)
        if response.status_code == 200:  # the beginning had come before the end
            assert events(response)[-1]["type"] == ("error" if path == MESSAGES else "response.failed")
        else:
            assert response.status_code == 502
    message = {"role": "assistant", "content": "Hi"}
    whole = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    upstream.default = Behaviour(body=json.dumps(whole).encode())
    assert ask(web, path, "bridged").status_code == 502


PROVIDERS = {
    400: (400, "invalid_request_error"),
    401: (502, "api_error"),
    429: (429, "rate_limit_error"),
    500: (502, "api_error"),
}


@pytest.mark.parametrize("status", PROVIDERS)
@pytest.mark.parametrize("stream", [False, True])
@EACH
def test_a_providers_error_comes_before_the_first_byte(
    web: httpx2.Client, upstream: Stub, path: str, model: str, status: int, stream: bool
) -> None:
    upstream.default = Behaviour(status=status)
    ours, kind = PROVIDERS[status]
    response = ask(web, path, model, stream=stream)
    assert response.status_code == ours
    body = response.json()
    assert body["detail"] == body["error"]["message"]
    if path == MESSAGES:
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["request_id"] == response.headers["x-request-id"]
    else:
        assert body["type"] == "about:blank"


def _second(web: httpx2.Client) -> httpx2.Response:
    """Ask a model that may be asked once a minute for the second time."""
    ask(web, MESSAGES, "rare")
    return ask(web, MESSAGES, "rare")


OURS: dict[str, tuple[Callable[[httpx2.Client], httpx2.Response], int, str]] = {
    "no such model": (lambda web: ask(web, MESSAGES, "none"), 404, "not_found_error"),
    "no such path": (lambda web: web.post(f"{MESSAGES}/batches", json={}), 404, "not_found_error"),
    "out of bounds": (lambda web: ask(web, MESSAGES, "demo", temperature=9), 422, "invalid_request_error"),
    "no bound": (lambda web: ask(web, MESSAGES, "demo", max_tokens=None), 422, "invalid_request_error"),
    "no JSON": (lambda web: web.post(MESSAGES, content=b"{", headers=JSON), 400, "invalid_request_error"),
    "no media type": (lambda web: web.post(MESSAGES, content=b"{}"), 415, "invalid_request_error"),
    "a wrong method": (lambda web: web.get(MESSAGES), 405, "invalid_request_error"),
    "too large": (lambda web: ask(web, MESSAGES, "demo", system="x" * 500_000), 413, "request_too_large"),
    "a caller's limit": (_second, 429, "rate_limit_error"),
    "no provider key": (lambda web: ask(web, MESSAGES, "keyless"), 503, "overloaded_error"),
}


@pytest.mark.parametrize("case", OURS)
def test_an_error_of_ours_is_anthropics_on_its_path(web: httpx2.Client, case: str) -> None:
    provoke, status, kind = OURS[case]
    response = provoke(web)
    assert response.status_code == status
    assert (response.json()["type"], response.json()["error"]["type"]) == ("error", kind)
    assert response.json()["request_id"] == response.headers["x-request-id"] == response.headers["request-id"]


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_clients_find_the_request_id_under_its_name_there(web: httpx2.Client, stream: bool) -> None:
    response = ask(web, MESSAGES, "demo", stream=stream)
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert "request-id" not in ask(web, RESPONSES, "demo", stream=stream).headers


def test_without_a_key_the_error_is_anthropics_too(web: httpx2.Client) -> None:
    response = web.post(MESSAGES, json=ASKED[MESSAGES], headers={"x-api-key": "sk-unknown"})
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")


def test_without_a_key_the_error_of_a_list_of_models_is_in_the_form_of_its_client(web: httpx2.Client) -> None:
    headers = {"x-api-key": "sk-unknown", "anthropic-version": "2023-06-01"}
    assert web.get("/v1/models", headers=headers).json()["type"] == "error"
    assert web.get("/v1/models/none", headers=headers).json()["error"]["type"] == "authentication_error"
    del headers["anthropic-version"]
    assert web.get("/v1/models", headers=headers).json()["type"] == "about:blank"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["bridged", "native"])
def test_a_provider_that_is_too_slow_is_told_in_anthropics_form(
    web: httpx2.Client, served: Ask, upstream: Stub, model: str, stream: bool
) -> None:
    upstream.default = Behaviour(delay_headers=600)
    with served.waiting(first_token=0.2, total=0.2):
        response = ask(web, MESSAGES, model, stream=stream)
    assert (response.status_code, response.json()["type"]) == (504, "error")
    assert response.json()["error"]["type"] == "timeout_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_ours_is_told_in_anthropics_form(
    web: httpx2.Client, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr("app.llm.accounting.AccountedCall.__aenter__", Mock(side_effect=RuntimeError("a fault")))
    response = ask(web, MESSAGES, "bridged", stream=stream)
    assert (response.status_code, response.json()["type"]) == (500, "error")
    assert response.json()["error"]["type"] == "api_error"
    assert "fault" not in response.text


@BOTH
def test_a_fault_of_ours_in_mid_stream_is_told_in_each_dialects_form(
    web: httpx2.Client, upstream: Stub, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    upstream.default = Behaviour(pace=0.05)
    packets = iter([True, True, False])
    real = Relay.feed
    monkeypatch.setattr(
        "app.llm.relay.Relay.feed", lambda relay, packet: real(relay, packet) if next(packets) else 1 / 0
    )
    last = events(ask(web, path, "bridged", stream=True))[-1]
    assert last["type"] == ("error" if path == MESSAGES else "response.failed")
    error = last["error"] if path == MESSAGES else last["response"]["error"]
    assert error["type" if path == MESSAGES else "code"] == ("api_error" if path == MESSAGES else "internal_error")


BROKEN = {
    "a head that is too large": (b"X-A: %b\r\n\r\n" % (b"x" * 70_000), 431, "invalid_request_error"),
    "a head that is far too large": (b"X-A: %b" % (b"x" * 140_000), 431, "invalid_request_error"),
    "a head that is none": (b"broken\r\n\r\n", 400, "invalid_request_error"),
    "a head that never ends": (b"", 408, "invalid_request_error"),
    "a body that never ends": (b"Content-Length: 9000\r\n\r\n{", 408, "invalid_request_error"),
    "a body that is too large": (b"Content-Length: 999999999\r\n\r\n", 413, "request_too_large"),
    "a body that is broken": (b"Transfer-Encoding: chunked\r\n\r\nnone\r\n", 400, "invalid_request_error"),
}


@pytest.mark.parametrize("why", BROKEN)
def test_what_is_no_request_yet_is_told_in_anthropics_form(upstream: Stub, why: str) -> None:
    """The path has come by then, if it was not that which is too long."""
    sent, status, kind = BROKEN[why]
    with running("sk-app-test", {"bridged": row(upstream)}, timeouts={"receive": 0.3}) as served:
        address = urlsplit(served.url)
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            key = b"Host: a\r\nx-api-key: sk-app-test\r\ncontent-type: application/json\r\n"
            connection.sendall(b"POST /v1/messages?beta=true HTTP/1.1\r\n" + key + sent)
            response = http.client.HTTPResponse(connection)
            response.begin()
            body = json.loads(response.read())
    assert (response.status, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == response.headers["x-request-id"]


def _as_each_client(error: Json, path: str) -> Any:
    """Return what tells a dialect's clients the kind of an error: Anthropic's type, or OpenAI's code."""
    return error["error"]["type" if path == MESSAGES else "code"]


@contextlib.contextmanager
def _limited(upstream: Stub, **given: Any) -> Iterator[tuple[Ask, httpx2.Client]]:
    """Serve a caller with limits."""
    hashed = {"key_sha256": hash_key("sk-app-test")}
    bounds = {"places": "max_in_flight", "memory": "max_body_memory"}
    settings = {name: given.pop(ours) for ours, name in bounds.items() if ours in given}
    models = {"bridged": row(upstream), "native": row(upstream, speaks=["responses", "messages"])}
    with (
        running("sk-app-test", models, callers={"test": hashed | given}, **settings) as ask,
        httpx2.Client(base_url=ask.url, headers={"x-api-key": "sk-app-test"}, timeout=60) as client,
    ):
        yield ask, client


REACHED = {RESPONSES: "rate_limit_exceeded", MESSAGES: "rate_limit_error"}


@EACH
def test_a_caller_stays_within_its_requests_in_each_dialect(upstream: Stub, path: str, model: str) -> None:
    with _limited(upstream, requests_per_minute=3) as (_, web):
        first = ask(web, path, model)
        assert first.headers["x-ratelimit-remaining-requests"] == "2"
        assert web.post(path, content=b"{", headers=JSON).status_code == 400, "charged before its body is read"
        assert ask(web, path, model, stream=True).headers["x-ratelimit-remaining-requests"] == "0"
        refused = [ask(web, path, model, stream=stream) for stream in (False, True)]
        if path == MESSAGES:
            refused.append(web.post(f"{MESSAGES}/count_tokens", json=ASKED[MESSAGES] | {"model": model}))
        for response in refused:
            assert (response.status_code, _as_each_client(response.json(), path)) == (429, REACHED[path])
            assert 1 <= int(response.headers["retry-after"]) <= 60
        assert len(upstream.requests) == 2


@EACH
def test_a_caller_stays_within_its_tokens_in_each_dialect(upstream: Stub, path: str, model: str) -> None:
    bound = "max_tokens" if path == MESSAGES else "max_output_tokens"
    with _limited(upstream, tokens_per_minute=1000) as (_, web):
        assert ask(web, path, model, **{bound: 900}).status_code == 200, "of which 15 are charged in the end"
        response = ask(web, path, model, **{bound: 1000})
        assert (response.status_code, _as_each_client(response.json(), path)) == (429, REACHED[path])
        assert "lower max_tokens" in response.json()["detail"]
        assert ask(web, path, model, **{bound: 900}).status_code == 200


@EACH
def test_a_caller_stays_within_its_calls_in_flight_in_each_dialect(upstream: Stub, path: str, model: str) -> None:
    with _limited(upstream, max_in_flight=1) as (served, web):
        upstream.queue(Behaviour(stall_after=2))
        with Call(served.url, "sk-app-test", path, **ASKED[path], model=model, stream=True) as call:
            assert next(call.events)
            response = ask(web, path, model)
            assert (response.status_code, _as_each_client(response.json(), path)) == (429, REACHED[path])
        assert upstream.wait_until(lambda: served.in_flight == 0)
        assert ask(web, path, model).status_code == 200
        assert served.in_flight == 0


REFUSALS = {
    "a model that the caller may not use": (403, "model_not_allowed", "permission_error"),
    "a large body while others are held": (503, "overloaded", "overloaded_error"),
    "a server that is full": (503, "overloaded", "overloaded_error"),
    "a server that drains": (503, "draining", "overloaded_error"),
}


@pytest.mark.parametrize("why", REFUSALS)
@BOTH
def test_a_server_that_can_not_answer_says_so_in_each_dialect(
    upstream: Stub, monkeypatch: pytest.MonkeyPatch, path: str, why: str
) -> None:
    monkeypatch.setattr("app.middleware.WAIT_FOR_PLACE", 0.05)
    status, code, kind = REFUSALS[why]
    with _limited(upstream, models=["bridged"], places=1, memory=100_000) as (served, web):
        model, more, calls = "bridged", {}, contextlib.ExitStack()
        if status == 403:
            model = "native"
        elif "large" in why:
            more = {"metadata": {"of": "x" * 99_000}}
            served.state.bodies.hold(Mock(caller="other"), 1)
        elif "full" in why:
            upstream.queue(Behaviour(stall_after=2))
            call = calls.enter_context(Call(served.url, "sk-app-test", path, **ASKED[path], model=model, stream=True))
            assert next(call.events)
        else:
            served.state.drain.draining = True
        with calls:
            response = ask(web, path, model, **more)
        assert response.status_code == status
        assert _as_each_client(response.json(), path) == (kind if path == MESSAGES else code)
        assert response.json()["type"] == ("error" if path == MESSAGES else "about:blank")
        served.state.drain.draining = False


@BOTH
def test_a_body_of_a_dialect_has_a_bounded_number_of_values(web: httpx2.Client, path: str) -> None:
    response = ask(web, path, "bridged", metadata={"of": [[]] * 50_001})
    assert response.status_code == 422
    assert "more than 50000 objects" in response.json()["detail"]


@BOTH
def test_a_model_that_fails_falls_back_to_one_that_is_bridged(web: httpx2.Client, upstream: Stub, path: str) -> None:
    upstream.queue(Behaviour(status=500))
    stream = ask(web, path, "falling back", stream=True)
    assert stream.headers["x-model"] == "bridged"
    assert said(events(stream)) == TEXT
    assert [request.path for request in upstream.requests] == [path, "/v1/chat/completions"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_failure_of_a_model_is_told_and_not_what_its_fallback_can_not_do(
    web: httpx2.Client, upstream: Stub, stream: bool
) -> None:
    """Nothing is wrong with the request: the same one may be answered a moment later."""
    upstream.default = Behaviour(status=500)
    response = ask(web, RESPONSES, "falling back", stream=stream, previous_response_id="resp_1")
    assert (response.status_code, response.json()["error"]["code"]) == (502, "provider_error")


def test_anthropic_gets_messages_as_they_are_with_our_key(web: httpx2.Client, upstream: Stub) -> None:
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "sig=="}
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Zürich", "n": 1.0}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": "21 °C",
        "cache_control": {"type": "ephemeral"},
    }
    fields: Json = {
        "model": "claude",
        "max_tokens": 32000,
        "thinking": {"type": "enabled", "budget_tokens": 16000},
        "context_management": {"edits": []},
        "metadata": {"user_id": "u"},
        "system": [{"type": "text", "text": "Be nice.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [thinking, call]},
            {"role": "user", "content": [result]},
        ],
    }
    versions = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b", "x-app": "cli"}
    response = web.post(MESSAGES, json=fields, headers=versions)
    assert response.status_code == 200
    [request] = upstream.requests
    assert request.body == fields | {"model": "claude-sonnet-4-5"}
    assert request.headers["x-api-key"] == "sk-ant-of-ours"
    assert request.headers["anthropic-beta"] == "a,b"
    assert "x-app" not in request.headers
    assert "authorization" not in request.headers
    assert "sk-app-test" not in str(request.headers)
    assert "x-left-out" not in response.headers


def test_the_blocks_of_a_tool_round_trip_keep_their_bytes(web: httpx2.Client, upstream: Stub) -> None:
    """Thinking, its signature and the prefix that a prompt cache knows are those that Anthropic made.

    The request is parsed and written anew, as compact JSON in UTF-8, as SDKs write it. Each value then has the bytes
    that it had, in the order that it had. Only spelling can change, which means nothing to a signature or a cache: they
    are about what the JSON says. That is blanks between values, `\\u00e9` for é, and `1.5e-09` for 1.5e-9. The names at
    the top level, and `role` and `content` of a message, may change places.
    """
    cache = {"type": "ephemeral", "ttl": "1h"}
    thinking = {"signature": "EqQB/+==", "type": "thinking", "thinking": 'Hm. "é"\n\t\x1f 👋\u2028 \\u00e9', "of": None}
    hidden = {"type": "redacted_thinking", "data": "EmwKAhgB/+=="}
    given = {"z": [1, 1.0, -0.5, 1e22, 12345678901234567890, True, None], "a": {"b": "", "A": {}}, "é": []}
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": given, "cache_control": cache}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "21 °C"}]}
    fields: Json = {
        "system": [{"type": "text", "text": "Be nice.", "cache_control": cache}],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [thinking, hidden, call]},
            {"role": "user", "content": [result | {"cache_control": cache}]},
        ],
        "tools": [{"name": "weather", "input_schema": {"type": "object", "properties": {}}, "cache_control": cache}],
        "thinking": {"type": "enabled", "budget_tokens": 16000},
    }

    def written(value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    asked = {"model": "claude", "max_tokens": 32000} | fields
    assert web.post(MESSAGES, content=written(asked), headers=JSON).status_code == 200
    for name, value in fields.items():
        assert written({name: value})[1:-1] in upstream.requests[0].raw
    spelt = json.dumps(asked, indent=1).encode()  # as \u00e9, and with blanks
    assert web.post(MESSAGES, content=spelt, headers=JSON).status_code == 200
    assert upstream.requests[1].raw == upstream.requests[0].raw


def test_anthropic_counts_tokens_itself_and_others_are_estimated(web: httpx2.Client) -> None:
    asked = {"messages": [{"role": "user", "content": "Hello"}]}
    counted = {
        model: web.post(f"{MESSAGES}/count_tokens", json=asked | {"model": model}) for model in ("claude", "demo")
    }
    assert counted["claude"].json() == {"input_tokens": 7}
    assert counted["claude"].headers["x-counted-by"] == "provider"
    assert 0 < counted["demo"].json()["input_tokens"] < 20
    assert counted["demo"].headers["x-counted-by"] == "estimate"


@EACH
def test_the_tokens_of_a_stream_are_counted(web: httpx2.Client, path: str, model: str) -> None:
    with structlog.testing.capture_logs() as lines:
        ask(web, path, model, stream=True)
        line = request_line(lines)
    assert (line["tokens_in"], line["tokens_out"]) == (7, 8)


@EACH
def test_the_metrics_name_the_dialect(web: httpx2.Client, served: Ask, path: str, model: str) -> None:
    ask(web, path, model)
    way = "passed_through" if model == "native" else "translated"
    labels = f'dialect="{path.rpartition("/")[2]}",model="{model}",way="{way}"'
    assert any(line.startswith("llm_dialect_calls_total{" + labels) for line in served.metrics)


def test_a_conversation_with_tools_reaches_chat(web: httpx2.Client, upstream: Stub) -> None:
    patch = {"type": "custom", "name": "patch", "description": "Change.", "format": {"type": "text"}}
    inner = {"type": "function", "name": "open", "parameters": {"type": "object"}, "strict": False}
    tools = [{"type": "namespace", "name": "web", "description": "", "tools": [inner]}, patch, {"type": "web_search"}]
    given: list[Json] = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be nice."}]},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Hi"}, {"type": "input_image", "image_url": "data:,"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One moment."}]},
        {"type": "function_call", "call_id": "1", "name": "open", "namespace": "web", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "2", "name": "patch", "input": "***"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image", "image_url": "data:,"}]},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "done"},
    ]
    response = ask(web, RESPONSES, "bridged", input=given, tools=tools, instructions="Help.", store=False)
    assert response.headers["x-left-out"] == "web_search"
    [request] = upstream.requests
    assert [message["role"] for message in request.body["messages"]] == [
        "system", "user", "assistant", "tool", "tool", "user",
    ]  # fmt: skip
    system, user, assistant, first, second, image = request.body["messages"]
    assert system["content"] == "Help.\n\nBe nice."
    assert [part["type"] for part in user["content"]] == ["text", "image_url"]
    assert assistant["content"] == "One moment."
    assert [call["function"] for call in assistant["tool_calls"]] == [
        {"name": "web__open", "arguments": "{}"},
        {"name": "patch", "arguments": '{"input":"***"}'},
    ]
    assert (first["tool_call_id"], second["content"]) == ("1", "done")
    assert image["content"] == [{"type": "image_url", "image_url": {"url": "data:,"}}]
    assert [tool["function"]["name"] for tool in request.body["tools"]] == ["web__open", "patch"]


REFUSED: dict[str, Json] = {
    "previous_response_id": {"previous_response_id": "resp_1"},
    "conversation": {"conversation": "conv_1"},
    "background": {"background": True},
    "tool_choice": {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}},
    "input.0": {"input": [{"type": "item_reference", "id": "msg_1"}]},
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_needs_a_memory_or_a_hosted_tool_is_refused_by_name(web: httpx2.Client, param: str) -> None:
    response = ask(web, RESPONSES, "bridged", **REFUSED[param])
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", param)
    if param != "background":  # whose answer nobody could get here
        assert ask(web, RESPONSES, "native", **REFUSED[param]).status_code == 200, "the upstream may know more"


def test_what_claude_code_always_sends_is_never_refused(web: httpx2.Client, upstream: Stub) -> None:
    always = {
        "max_tokens": 32000,
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "u"},
        "system": [{"type": "text", "text": "Be nice.", "cache_control": {"type": "ephemeral"}}],
    }
    response = ask(web, MESSAGES, "narrow", **always)
    assert response.status_code == 200
    left_out = response.headers["x-left-out"].split(", ")
    assert left_out == ["context_management", "metadata", "thinking", "cache_control", "max_tokens"]
    [request] = upstream.requests
    assert request.body.keys() == {"model", "messages", "max_completion_tokens"}
    assert request.body["max_completion_tokens"] == 50


def test_too_many_tokens_are_refused_by_the_dialects_own_name(web: httpx2.Client) -> None:
    error = ask(web, RESPONSES, "narrow", max_output_tokens=51).json()["error"]
    assert (error["param"], error["code"]) == ("max_output_tokens", "invalid_request")
    assert "max_tokens_limit" in error["message"]


@BOTH
def test_reasoning_goes_back_to_the_model_that_it_came_from(web: httpx2.Client, upstream: Stub, path: str) -> None:
    message = {"role": "assistant", "content": "Hi.", "reasoning_content": "Hm, hm."}
    body = {"id": "c", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    upstream.queue(Behaviour(body=json.dumps(body).encode()), Behaviour(), Behaviour())
    include = {"include": ["reasoning.encrypted_content"]} if path == RESPONSES else {}
    first = ask(web, path, "bridged", **include).json()
    if path == RESPONSES:
        assert first["output"][0]["summary"][0]["text"] == "Hm, hm."
        more: Json = {
            "input": [{"role": "user", "content": "Hello"}, *first["output"], {"role": "user", "content": "So?"}]
        }
    else:
        assert first["content"][0]["thinking"] == "Hm, hm."
        said = [*ASKED[MESSAGES]["messages"], {"role": "assistant", "content": first["content"]}]
        more = {"messages": [*said, {"role": "user", "content": "So?"}]}
    ask(web, path, "bridged", **more)
    other = ask(web, path, "narrow", **more, **({} if path == RESPONSES else {"max_tokens": 9}))
    assert other.headers["x-left-out"] == ("reasoning" if path == RESPONSES else "thinking")
    _, second, third = (request.body["messages"] for request in upstream.requests)
    assert second[1] == {"role": "assistant", "content": "Hi.", "reasoning_content": "Hm, hm."}
    assert third[1] == {"role": "assistant", "content": "Hi."}


@BOTH
def test_reasoning_that_a_bridge_has_sealed_is_not_sent_to_a_provider(
    web: httpx2.Client, upstream: Stub, path: str
) -> None:
    """It can't read that, and would refuse the whole request: a conversation may move from one model to another."""
    upstream.default = Behaviour(thought="Hm, hm.", tool_calls=CALL.tool_calls)
    include = {"include": ["reasoning.encrypted_content"]} if path == RESPONSES else {}
    said = ask(web, path, "bridged", **include).json()
    if path == RESPONSES:
        more: Json = {"input": [*said["output"], {"type": "function_call_output", "call_id": "call_0", "output": "."}]}
        kept = more["input"][1:]
    else:
        hello = ASKED[MESSAGES]["messages"]
        thought = {"role": "assistant", "content": said["content"][:1]}
        more = {"messages": [*hello, thought, *hello, {"role": "assistant", "content": said["content"]}, *hello]}
        kept = [*hello, *hello, {"role": "assistant", "content": said["content"][1:]}, *hello]
    upstream.default = Behaviour()
    assert ask(web, path, "native", **more).status_code == 200
    assert upstream.requests[-1].body["input" if path == RESPONSES else "messages"] == kept
    if path == MESSAGES:
        assert web.post(f"{path}/count_tokens", json=more | {"model": "claude"}).status_code == 200
        assert upstream.requests[-1].body["messages"] == kept


UNFIT = {
    "a list": [1],
    "no names": [],
    "too deep": {"model": "bridged", "reasoning_details": [{"of": [[[]]]}]},
    "a number": {"model": "bridged", "reasoning": 1},
    "too many parts": {"model": "bridged", "thinking_blocks": [{}] * 50_000},
    "too many names": {"model": "bridged", **dict.fromkeys(map(str, range(20_000)), "")},
}


@pytest.mark.parametrize("why", UNFIT)
@BOTH
def test_reasoning_that_was_not_sealed_here_costs_nothing(
    web: httpx2.Client, upstream: Stub, path: str, why: str
) -> None:
    given = "chat-1." + base64.urlsafe_b64encode(json.dumps(UNFIT[why]).encode()).decode()
    more: Json = {"input": [{"type": "reasoning", "encrypted_content": given}, {"role": "user", "content": "So?"}]}
    if path == MESSAGES:
        block = {"type": "thinking", "thinking": "", "signature": given}
        more = {"messages": [{"role": "assistant", "content": [block]}, {"role": "user", "content": "So?"}]}
    response = ask(web, path, "bridged", **more)
    assert response.status_code == 200
    assert response.headers["x-left-out"] == ("reasoning" if path == RESPONSES else "thinking")
    assert upstream.requests[0].body["messages"] == [{"role": "user", "content": "So?"}]


def test_all_reasoning_of_a_request_is_bounded_together() -> None:
    part = json.dumps({"model": "m", "thinking_blocks": [{"type": "thinking"}] * 1000}).encode()
    item = {"type": "reasoning", "encrypted_content": "chat-1." + base64.urlsafe_b64encode(part).decode()}
    asked = Responses(
        ResponsesRequest.model_validate({"model": "m", "input": [item, {"role": "user", "content": "So?"}] * 50})
    )
    roles = [message["role"] for message in asked.fields["messages"]]
    assert (roles.count("user"), roles.count("assistant")) == (50, 9)  # each part has four quotes and a comma
    assert asked.left_out == ["reasoning"]


@BOTH
def test_files_on_this_machine_are_not_read(web: httpx2.Client, upstream: Stub, path: str) -> None:
    address = "file:///etc/passwd"
    part: Json = {"type": "input_image", "image_url": address}
    if path == MESSAGES:
        image = {"type": "image", "source": {"type": "url", "url": address}}
        part = {"type": "document", "source": {"type": "content", "content": [image]}}
    key = "input" if path == RESPONSES else "messages"
    for model in ("bridged", "native"):
        assert ask(web, path, model, **{key: [{"role": "user", "content": [part]}]}).status_code == 422
    assert upstream.requests == []


@BOTH
@pytest.mark.parametrize("model", ["bridged", "native"])
def test_nor_those_that_a_tool_has_named(web: httpx2.Client, upstream: Stub, path: str, model: str) -> None:
    image: Json = {"type": "input_image", "image_url": "FILE:/etc/passwd"}
    fields: Json = {"input": [{"type": "function_call_output", "call_id": "1", "output": [image]}]}
    if path == MESSAGES:
        image = {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}
        result = {"type": "tool_result", "tool_use_id": "1", "content": [image]}
        fields = {"messages": [{"role": "user", "content": [result]}]}
    refused = ask(web, path, model, **fields)
    assert refused.status_code == 422
    assert "https:, http: or data:" in refused.text
    assert upstream.requests == []


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_goes_on_to_a_model_of_chat_is_translated_then(
    web: httpx2.Client, upstream: Stub, path: str, stream: bool
) -> None:
    upstream.queue(Behaviour(status=401))  # which opens no circuit breaker
    answer = ask(web, path, "falls back", stream=stream)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model"] == "bridged"
    assert (said(events(answer)) if stream else text_of(answer.json())) == TEXT
    *failed, request = upstream.requests
    assert {each.path for each in failed} == {path}
    assert request.path == "/v1/chat/completions"
    assert [message["role"] for message in request.body["messages"]] == ["user"]
    assert bool(request.body.get("stream")) == stream
    assert not request.body.keys() & {"rest", "input", "max_output_tokens"}


def test_images_in_the_results_of_tools_are_counted_as_images() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [image, image]}
    used = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    outlines = {"messages": [{"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]}
    assert images_in(outlines) == 2
    assert 2 * 1600 < estimate(outlines, "anthropic/claude") < 2 * 1600 + 200


def test_tokens_of_a_file_on_a_server_are_not_counted_by_a_provider(web: httpx2.Client, upstream: Stub) -> None:
    fields = {"messages": [{"role": "user", "content": [FILE]}]}
    assert web.post(f"{MESSAGES}/count_tokens", json=ASKED[MESSAGES] | {"model": "native"} | fields).status_code == 422
    assert upstream.requests == []


def test_a_system_prompt_leads_nowhere_but_to_the_web(web: httpx2.Client, upstream: Stub) -> None:
    assert ask(web, MESSAGES, "native", system=[FILE]).status_code == 422
    assert upstream.requests == []


@pytest.mark.parametrize("kind", ["tool_image", "thinking", "function_call_output", "tool_result"])
def test_no_type_of_a_part_leads_a_responses_server_to_a_file(web: httpx2.Client, upstream: Stub, kind: str) -> None:
    part = {"type": kind, "image_url": "file:///etc/passwd"}
    assert ask(web, RESPONSES, "native", input=[{"role": "user", "content": [part]}]).status_code == 422
    assert upstream.requests == []


def test_what_a_shell_or_a_summary_says_is_no_address(web: httpx2.Client) -> None:
    said = {"stdout": "ssh://git@a.example/b\n", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}
    item = {"type": "shell_call_output", "call_id": "c", "output": [said]}
    assert ask(web, RESPONSES, "native", input=[item]).status_code == 200
    block = {"type": "compaction", "content": "ssh://a.example is the remote"}
    assert ask(web, MESSAGES, "native", messages=[{"role": "assistant", "content": [block]}]).status_code == 200


def test_every_image_counts_wherever_it_is() -> None:
    document: Json = {"type": "document", "source": {"type": "content", "content": [WEB] * 3}}
    for block in (document, {"type": "tool_result", "tool_use_id": "t", "content": [document]}):
        asked: Json = {"max_tokens": 9, "messages": [{"role": "user", "content": [block]}]}
        assert images_in(Messages(MessagesRequest.model_validate(asked)).outlines()) == 3
    image = {"type": "input_image", "image_url": "https://a.example/x.png"}
    item = {"type": "function_call_output", "call_id": "c", "content": "x", "output": [image] * 2}
    assert images_in(Responses(ResponsesRequest.model_validate({"input": [item]})).outlines()) == 2


@pytest.mark.parametrize("fields", [{"tools": [{"type": "function"}]}, {"text": {"format": 5}}])
def test_a_stream_that_is_cut_fails_as_ever_whatever_was_asked(
    web: httpx2.Client, upstream: Stub, fields: Json
) -> None:
    upstream.default = Behaviour(cut_at=900)
    response = ask(web, RESPONSES, "native", stream=True, **fields)
    assert response.status_code == 422 or "response.failed" in response.text


def test_options_of_a_stream_need_one(web: httpx2.Client) -> None:
    assert ask(web, MESSAGES, "bridged", stream_options={"include_usage": True}).status_code == 422


def test_an_empty_input_beside_messages_is_no_fault_of_ours(web: httpx2.Client) -> None:
    fields = ASKED[MESSAGES] | {"model": "bridged", "input": []}
    assert web.post(f"{MESSAGES}/count_tokens", json=fields).status_code < 500


def test_documents_and_images_of_messages_reach_chat(web: httpx2.Client, upstream: Stub) -> None:
    data = base64.b64encode(b"%PDF").decode()
    blocks: list[Json] = [
        {
            "type": "document",
            "title": "a.pdf",
            "source": {"type": "base64", "media_type": "application/pdf", "data": data},
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Plain."}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        {"type": "text", "text": "Compare."},
    ]
    assert ask(web, MESSAGES, "bridged", messages=[{"role": "user", "content": blocks}]).status_code == 200
    [request] = upstream.requests
    assert request.body["messages"][0]["content"] == [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{data}"}},
        {"type": "text", "text": "Plain."},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "Compare."},
    ]


def test_a_web_socket_is_told_to_use_http(web: httpx2.Client) -> None:
    response = web.get(RESPONSES, headers={"Upgrade": "websocket", "Connection": "Upgrade"})
    assert (response.status_code, response.headers["upgrade"]) == (426, "HTTP/1.1")
    assert web.get(RESPONSES).status_code == 405


def test_completions_are_told_to_use_chat(web: httpx2.Client) -> None:
    response = web.post("/v1/completions", json={"model": "demo", "prompt": "Hello"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_endpoint")
    assert "/v1/chat/completions" in response.json()["detail"]


def test_models_are_listed_in_anthropics_form_for_its_clients(web: httpx2.Client) -> None:
    versions = {"anthropic-version": "2023-06-01"}
    listed = web.get("/v1/models", headers=versions).json()
    assert listed["has_more"] is False
    assert {"type": "model", "id": "demo", "display_name": "demo"}.items() <= listed["data"][-1].items()
    assert web.get("/v1/models/demo", headers=versions).json()["type"] == "model"
    assert web.get("/v1/models").json()["object"] == "list"


def test_what_a_row_speaks_depends_on_its_vendor_and_address() -> None:
    def speaks(**given: Any) -> set[str]:
        entry = Settings.model_validate({"models": {"m": given}, "default_model": "m"}).models["m"]
        return set(resolve("m", entry, {"AZURE_API_KEY": "k", "AZURE_API_BASE": "https://a.example"}).speaks)

    assert speaks(upstream="openai/gpt-4o") == {"responses"}
    assert speaks(upstream="openai/gpt-4o", api_base="http://localhost:8000/v1") == set()
    assert speaks(upstream="openai/gpt-4o", speaks=[]) == set()
    assert speaks(upstream="azure/gpt-4o") == {"responses"}
    assert speaks(upstream="anthropic/claude-sonnet-4-5") == {"messages"}
    assert speaks(upstream="groq/llama") == set()
    assert speaks(upstream="hosted_vllm/qwen", api_base="http://localhost:8000", speaks=["responses"]) == {"responses"}


def test_what_can_not_be_read_is_the_providers_error(web: httpx2.Client, upstream: Stub) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": ["no call"]}
    body = {"id": "c", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    upstream.default = Behaviour(body=json.dumps(body).encode())
    for path in ASKED:
        response = ask(web, path, "bridged")
        assert (response.status_code, response.json()["error"]["code"]) == (502, ProviderError.code)


def test_a_long_conversation_takes_no_more_than_its_length() -> None:
    """A text that grows by appending would be copied again for each message: 20 GB here."""
    system = [{"role": "developer", "content": "x" * 5000}] * 2000
    turns = [{"type": "function_call", "call_id": "1", "name": "a", "arguments": "{}"}]
    turns += [{"role": "assistant", "content": "x" * 5000}] * 2000
    started = time.process_time()
    asked = Responses(ResponsesRequest.model_validate({"input": [*system, *turns]}))
    assert time.process_time() - started < 2
    assert [len(str(message["content"])) for message in asked.fields["messages"]] == [2000 * 5002 - 2, 2000 * 5000]


def test_documents_within_documents_take_no_more_than_their_length() -> None:
    """Each would be searched for addresses again with all that is in it: seconds of work."""
    document: Json = {"type": "image", "source": {"type": "url", "url": "https://a.b"}}
    for _ in range(60):
        content = {"type": "content", "content": [document]}
        document = {"type": "document", "title": "x" * 1000, "source": content}
    asked = {"max_tokens": 9, "messages": [{"role": "user", "content": [document] * 15}]}
    started = time.process_time()
    Messages(MessagesRequest.model_validate(asked))
    assert time.process_time() - started < 0.5


def test_only_so_much_is_named_of_what_is_left_out() -> None:
    """The names are a header, and a list that is searched for each of them."""
    tools = [{"type": f"tool_{number}"} for number in range(20_000)]
    asked = Responses(ResponsesRequest.model_validate({"input": "Hello", "tools": [{**NAMESPACE, "tools": tools}]}))
    asked.check()
    assert asked.left_out == [f"tool_{number}" for number in range(32)]
