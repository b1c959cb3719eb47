"""The HTTP surface: OpenAI's requests and answers, their bounds, and one shape for every error."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from starlette.testclient import TestClient

from app import own
from app.config import ModelEntry, Settings
from app.main import create_app
from tests.conftest import MakeSettings
from tests.serving import Backend, serve
from tests.stub import MODEL_SUFFIX, PROMPT_TOKENS, TEXT, Behaviour, Stub
from tests.wire import Call

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
HELLO = {"messages": MESSAGES}
ORIGIN = "https://app.example.com"
LIMIT = 100_000
"""The largest body, in bytes."""
CANARY = "a-prompt-that-nobody-repeats"

faulty = APIRouter()


@faulty.get("/fails")
async def fails() -> None:
    raise RuntimeError(CANARY)


@pytest.fixture(scope="module")
def provider() -> Iterator[Stub]:
    """The provider of every model of the server."""
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def url(provider: Stub, key: str) -> Iterator[str]:
    """A server with one endpoint that fails."""
    upstream: Any = {"upstream": "openai/gpt-4o", "api_base": f"{provider.url}/v1"}
    models = {
        "gpt-4o": ModelEntry(**upstream),
        "with defaults": ModelEntry(**upstream, defaults={"temperature": 0.7, "max_tokens": 1024, "seed": 1}),
        "short": ModelEntry(**upstream, max_tokens_limit=100),
        "meta-llama/Llama-3.1-8B": ModelEntry(**upstream),
        "without a key": ModelEntry(**upstream, api_key_env="OWN_SERVER_API_KEY"),
        "demo": ModelEntry(upstream="demo/echo"),
    }
    callers: Any = {"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "routers", [faulty], raising=False)
        app = create_app(
            Settings(models=models, callers=callers, cors_origins=[ORIGIN], max_body_bytes=LIMIT, retries=0)
        )
    with serve(app) as url:
        yield url


@pytest.fixture(scope="module")
def web(url: str, headers: dict[str, str]) -> Iterator[httpx2.Client]:
    """A client of that server: a website, with a key."""
    with httpx2.Client(base_url=url, headers={**headers, "Origin": ORIGIN}, timeout=60) as web:
        yield web


def check_problem(response: httpx2.Response, status: int, code: str) -> str:
    """Hold an error against what all errors have in common; return its sentence."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in response.headers["access-control-expose-headers"].lower()
    body = response.json()
    message = body["detail"]
    kind = "server_error" if status >= 500 else "invalid_request_error"
    assert body == {
        "type": "about:blank",
        "title": body["title"],
        "status": status,
        "detail": message,
        "instance": f"urn:request:{response.headers['x-request-id']}",
        "error": {"message": message, "type": kind, "param": body["error"]["param"], "code": code},
    }
    assert body["title"]
    assert message
    return str(message)


# Errors.

UNFIT = [
    {},
    [],
    {"messages": []},
    {"messages": CANARY},
    {"messages": [CANARY]},
    {"messages": [{"content": CANARY}]},
    {"messages": [{"role": CANARY, "content": "x"}]},
    {"messages": [{"role": "user", "name": CANARY}]},
    {"messages": [{"role": "user", "content": {CANARY: CANARY}}]},
    {"messages": [{"role": "user", "content": [{"text": CANARY}]}]},
    {"messages": [{"role": "user", "content": [{"type": CANARY * 3}]}]},
    {"messages": [{"role": "tool", "content": CANARY}]},
    {"messages": MESSAGES, "model": [CANARY]},
    {"messages": MESSAGES, "temperature": CANARY},
    {"messages": MESSAGES, "max_tokens": True},
    {"messages": MESSAGES, "stream": CANARY},
    {"messages": MESSAGES, "stop": {CANARY: CANARY}},
    {"messages": MESSAGES, "stop": [CANARY] * 17},
    {"messages": MESSAGES, "tools": [CANARY]},
    {"messages": MESSAGES, "user": CANARY * 20},
]


ERRORS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "an endpoint fails": ("GET", "/fails", {}, 500, "internal_error"),
    "no such path": ("GET", f"/{CANARY}", {}, 404, "not_found"),
    "no such model": ("POST", CHAT, {"json": HELLO | {"model": "no-such-model"}}, 404, "model_not_found"),
    "no such model to look at": ("GET", "/v1/models/no-such-model", {}, 404, "model_not_found"),
    "wrong method": ("GET", CHAT, {}, 405, "method_not_allowed"),
    "too large, declared": ("POST", CHAT, {"content": b" " * (LIMIT + 1)}, 413, "request_too_large"),
    "too large, counted": ("POST", CHAT, {"content": [b" " * LIMIT, b" "]}, 413, "request_too_large"),
    "not said to be JSON": (
        *("POST", CHAT, {"content": b"{}", "headers": {"Content-Type": "text/plain"}}),
        *(415, "unsupported_media_type"),
    ),
    "wrong key": ("POST", CHAT, {"json": HELLO, "headers": {"Authorization": "Bearer no"}}, 401, "invalid_api_key"),
    "no provider key": ("POST", CHAT, {"json": HELLO | {"model": "without a key"}}, 503, "provider_not_configured"),
    "misfit": ("POST", CHAT, {"json": {}}, 422, "invalid_request"),
    "misfit for embeddings": ("POST", "/v1/embeddings", {"json": {}}, 422, "invalid_request"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_one_body_a_request_id_and_cors_headers(web: httpx2.Client, name: str) -> None:
    method, path, given, status, code = ERRORS[name]
    response = web.request(method, path, **{"headers": {"Content-Type": "application/json"}} | given)
    check_problem(response, status, code)
    assert CANARY not in response.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        CANARY.encode(),
        f'["{CANARY}"'.encode(),
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b"[" * 60_000,
        b"9" * (LIMIT - 1),
        b'{"temperature": NaN}',
        b'{"logit_bias": {"1": -Infinity}}',
    ],
    ids=["empty", "text", "cut off", "not UTF-8", "nested", "long number", "NaN", "infinity"],
)
def test_what_is_not_json_is_refused_unrepeated(web: httpx2.Client, body: bytes) -> None:
    response = web.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    check_problem(response, 400, "invalid_json")
    assert CANARY not in response.text


@pytest.mark.parametrize("body", UNFIT, ids=lambda body: json.dumps(body).replace(CANARY, "_"))
def test_what_does_not_fit_is_refused_unrepeated(web: httpx2.Client, body: Any) -> None:
    response = web.post(CHAT, json=body)
    check_problem(response, 422, "invalid_request")
    assert CANARY not in response.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "1e999"),
        ("a_new_field", "[-1e999]"),
        ("response_format", '{"%s": {"%s": 1e999}}'),
        ("messages", '[{"role": "user", "content": [{"type": "text", "%s": 1e999}]}]'),
    ],
)
def test_a_number_that_json_can_not_pass_on_is_refused(web: httpx2.Client, field: str, value: str) -> None:
    body = json.dumps(HELLO)[:-1] + f', "{field}": {value.replace("%s", CANARY)}}}'
    response = web.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    check_problem(response, 422, "invalid_request")
    assert response.json()["error"]["param"] == field
    assert CANARY not in response.text


@pytest.mark.parametrize(
    ("message", "param", "reason"),
    [
        ({"role": "user"}, "messages.1", "a user message needs content"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages.1.content.0.type", "Field required"),
    ],
    ids=["without content", "a part without its type"],
)
def test_a_misfit_is_told_with_its_field(web: httpx2.Client, message: Any, param: str, reason: str) -> None:
    body = web.post(CHAT, json={"messages": [*MESSAGES, message]}).json()
    assert body["error"]["param"] == param
    assert body["detail"] == f"{param}: {reason}"


def test_a_wrong_method_is_told_the_right_one(web: httpx2.Client) -> None:
    assert web.get(CHAT).headers["allow"] == "POST"


def test_a_body_of_the_largest_size_is_taken(web: httpx2.Client) -> None:
    body = json.dumps(HELLO).encode()
    response = web.post(
        CHAT, content=body + b" " * (LIMIT - len(body)), headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_every_dialect_is_answered(web: httpx2.Client, path: str) -> None:
    asked = {"input": "Hello"} if path == "/v1/responses" else {"messages": HELLO["messages"], "max_tokens": 99}
    assert TEXT in json.dumps(web.post(path, json=asked | {"model": "gpt-4o"}).json(), ensure_ascii=False)


def test_a_key_may_come_as_anthropics_clients_send_it(web: httpx2.Client, key: str) -> None:
    with httpx2.Client(base_url=web.base_url) as stranger:
        assert stranger.get("/v1/models", headers={"x-api-key": key}).status_code == 200
        assert stranger.get("/v1/models", headers={"x-api-key": "sk-unknown"}).status_code == 401


def test_a_model_without_its_key_names_the_variable(web: httpx2.Client) -> None:
    response = web.post(CHAT, json=HELLO | {"model": "without a key"})
    assert "OWN_SERVER_API_KEY" in response.json()["detail"]
    assert response.headers["x-should-retry"] == "false"


# Headers.


def test_a_request_id_is_taken_over(web: httpx2.Client) -> None:
    for request_id in ("abc", "2026-11-24_a.B", "x" * 128):
        assert web.get("/health", headers={"X-Request-ID": request_id}).headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", [None, "", "a b", "x" * 129, "Grüße", "a/b", "<b>", "x" * 8000])
def test_a_request_id_that_could_do_harm_is_replaced(web: httpx2.Client, request_id: str | None) -> None:
    sent = [] if request_id is None else [(b"X-Request-ID", request_id.encode("latin-1"))]
    made = [web.get("/health", headers=sent).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert made[0] != made[1]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_a_request_id_cors_headers_and_the_name_of_its_model(web: httpx2.Client, stream: bool) -> None:
    response = web.post(CHAT, json=HELLO | {"stream": stream})
    assert response.headers["x-request-id"]
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["x-model"] == "gpt-4o"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_models_name_may_be_of_any_script(settings: MakeSettings, key: str, stream: bool) -> None:
    made = settings(models={"模型": {"upstream": "demo/echo"}}, default_model="模型")
    with serve(create_app(made)) as url, Call(url, key, stream=stream) as call:
        assert call.status == 200
        assert call.headers["x-model"].encode("latin-1").decode() == "模型"


def test_nan_in_an_answer_is_no_json(web: httpx2.Client, provider: Stub) -> None:
    provider.queue(Behaviour(body=b'{"id": "x", "choices": [{"message": {"content": "Hello"}, "logprobs": NaN}]}'))
    answer = web.post(CHAT, json=HELLO | {"model": "gpt-4o"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "provider_error")


@pytest.mark.parametrize(("origin", "status"), [(ORIGIN, 200), ("https://evil.example", 400)])
def test_a_preflight_is_granted_to_known_origins(web: httpx2.Client, origin: str, status: int) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    response = web.options(CHAT, headers=asked)
    assert response.status_code == status
    assert response.headers["x-request-id"]
    assert (response.headers.get("access-control-allow-origin") == origin) == (status == 200)
    if status != 200:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["error"]["code"] == "invalid_request"


def test_an_unknown_origin_gets_no_cors_headers(web: httpx2.Client) -> None:
    response = web.post(CHAT, json=HELLO, headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


# Answers.


def test_an_answer_is_openais_with_its_text_as_content(web: httpx2.Client) -> None:
    answer = web.post(CHAT, json=HELLO).json()
    assert answer["id"] == "chatcmpl-stub"
    assert answer["object"] == "chat.completion"
    assert answer["model"] == f"gpt-4o{MODEL_SUFFIX}"
    assert answer["content"] == answer["choices"][0]["message"]["content"] == TEXT
    assert answer["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert answer["usage"]["completion_tokens"] == len(TEXT.split()) + 1
    assert answer["system_fingerprint"] == "fp_stub"


def test_the_default_model_answers_who_names_none(
    stub: Stub, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{stub.url}/v1")
    caller: Any = {"key_sha256": hashlib.sha256(headers["Authorization"].removeprefix("Bearer ").encode()).hexdigest()}
    with TestClient(create_app(Settings(callers={"test": caller})), headers=headers) as client:
        assert client.post(CHAT, json=HELLO).json()["content"] == TEXT
    [request] = stub.requests
    assert request.path == CHAT
    assert request.body == {"model": "gpt-4o", "messages": MESSAGES, "temperature": 0.7, "max_tokens": 1024}


def test_a_stream_passes_byte_for_byte(web: httpx2.Client, provider: Stub) -> None:
    asked = HELLO | {"model": "gpt-4o", "stream": True, "stream_options": {"include_usage": True}}
    theirs = httpx2.post(f"{provider.url}{CHAT}", json=asked, timeout=60).content
    ours = web.post(CHAT, json=asked)
    assert ours.headers["content-type"].startswith("text/event-stream")
    assert ours.headers["cache-control"] == "no-cache"
    assert ours.headers["x-accel-buffering"] == "no"
    assert theirs.endswith(b"data: [DONE]\n\n")
    assert ours.content == theirs


def test_a_stream_lacks_only_the_usage_that_nobody_asked_for(web: httpx2.Client, provider: Stub) -> None:
    asked = HELLO | {"model": "gpt-4o", "stream": True}
    usage = {"stream_options": {"include_usage": True}}
    theirs = httpx2.post(f"{provider.url}{CHAT}", json=asked | usage, timeout=60).content.split(b"\n\n")
    [position] = [number for number, event in enumerate(theirs) if b'"choices": []' in event]
    del theirs[position]
    assert web.post(CHAT, json=asked).content == b"\n\n".join(theirs)


def test_unknown_fields_go_to_the_provider(web: httpx2.Client, provider: Stub) -> None:
    extra = {"seed": 7, "a_new_field": {"deep": [1, None]}, "messages": [MESSAGES[0] | {"cache": True}]}
    assert web.post(CHAT, json=extra).status_code == 200
    assert provider.requests[-1].body == {"model": "gpt-4o"} | extra


# Bounds and sampling.


@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {"temperature": 2.0}, {"max_tokens": 1}, {"max_tokens": 131072}], ids=str
)
def test_a_value_within_its_bounds_goes_to_the_provider(
    web: httpx2.Client, provider: Stub, fields: dict[str, Any]
) -> None:
    assert web.post(CHAT, json=HELLO | fields).status_code == 200
    assert provider.requests[-1].body == HELLO | {"model": "gpt-4o"} | fields


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": "1"},
        {"max_tokens": 0},
        {"max_tokens": 131073},
        {"max_tokens": 1.5},
        {"max_completion_tokens": 0},
        {"max_completion_tokens": 131073},
        {"n": 0},
    ],
    ids=str,
)
def test_a_value_out_of_its_bounds_is_refused(web: httpx2.Client, fields: dict[str, Any]) -> None:
    check_problem(web.post(CHAT, json=HELLO | fields), 422, "invalid_request")


def test_defaults_are_sent_where_a_request_leaves_them_out(web: httpx2.Client, provider: Stub) -> None:
    asked = HELLO | {"model": "with defaults", "temperature": 0.1}
    assert web.post(CHAT, json=asked).status_code == 200
    assert provider.requests[-1].body == asked | {"model": "gpt-4o", "max_tokens": 1024, "seed": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_is_not_added_to_max_completion_tokens(web: httpx2.Client, provider: Stub, stream: bool) -> None:
    asked = HELLO | {"model": "with defaults", "max_completion_tokens": 50, "stream": stream}
    assert web.post(CHAT, json=asked).status_code == 200
    assert "max_tokens" not in provider.requests[-1].body
    assert provider.requests[-1].body["max_completion_tokens"] == 50
    assert provider.requests[-1].body["temperature"] == 0.7


@pytest.mark.parametrize("way", ["direct", "litellm"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_refuses_sampling_fields_answers_who_names_none(
    backend: Backend, headers: dict[str, str], way: str, stream: bool
) -> None:
    backend.stub.queue(Behaviour(refuses=frozenset({"temperature", "max_tokens", "max_completion_tokens"})))
    asked = HELLO | {"model": way, "stream": stream}
    response = httpx2.post(f"{backend.client.base_url}chat/completions", json=asked, headers=headers, timeout=60)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_limit_of_a_model_bounds_both_names_and_is_named(web: httpx2.Client, field: str) -> None:
    assert web.post(CHAT, json=HELLO | {"model": "short", field: 100}).status_code == 200
    message = check_problem(web.post(CHAT, json=HELLO | {"model": "short", field: 101}), 422, "invalid_request")
    assert "at most 100" in message
    assert "max_tokens_limit" in message


# Models, embeddings, health.


def test_models_are_listed_by_their_public_names(web: httpx2.Client) -> None:
    body = web.get("/v1/models").json()
    assert body["object"] == "list"
    names = [card["id"] for card in body["data"]]
    assert names == ["gpt-4o", "with defaults", "short", "meta-llama/Llama-3.1-8B", "without a key", "demo"]
    for card in body["data"]:
        assert card == {"id": card["id"], "object": "model", "created": card["created"], "owned_by": card["owned_by"]}


@pytest.mark.parametrize("name", ["gpt-4o", "meta-llama/Llama-3.1-8B", "meta-llama%2FLlama-3.1-8B"])
def test_a_model_is_found_by_its_public_name(web: httpx2.Client, name: str) -> None:
    assert web.get(f"/v1/models/{name}").json()["id"] == name.replace("%2F", "/")


@pytest.mark.parametrize("model", ["gpt-4o", "demo"])
@pytest.mark.parametrize("given", ["Hello", ["Hello", "again"], [1, 2], [[1], [2]]], ids=str)
def test_embeddings_are_made_of_everything_that_openai_takes(web: httpx2.Client, model: str, given: Any) -> None:
    body = web.post("/v1/embeddings", json={"model": model, "input": given, "dimensions": 8}).json()
    assert body["object"] == "list"
    count = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    assert [row["index"] for row in body["data"]] == list(range(count))
    assert all(len(row["embedding"]) == 8 for row in body["data"])
    assert body["usage"]["prompt_tokens"] > 0


def test_the_same_text_has_the_same_demo_embedding_and_another_has_another(web: httpx2.Client) -> None:
    asked = {"model": "demo", "input": ["Hello", "Hello", "Bye"]}
    one, same, other = (row["embedding"] for row in web.post("/v1/embeddings", json=asked).json()["data"])
    assert one == same
    assert one != other


def test_health_and_readiness_need_no_key_and_call_no_model(url: str, provider: Stub) -> None:
    before = len(provider.requests)
    assert httpx2.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
    assert httpx2.get(f"{url}/ready", timeout=60).json() == {"status": "ready"}
    assert len(provider.requests) == before


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/redoc"])
def test_the_documentation_is_off_unless_asked_for(web: httpx2.Client, path: str) -> None:
    check_problem(web.get(path), 404, "not_found")


@pytest.mark.parametrize("setting", ["api_docs", "dev"])
def test_the_documentation_describes_the_surface(setting: str) -> None:
    with TestClient(create_app(Settings(**{setting: True}))) as client:  # type: ignore[arg-type]
        assert client.get("/docs").status_code == 200
        paths = client.get("/openapi.json").json()["paths"]
    assert {CHAT, "/v1/embeddings", "/v1/models", "/health", "/ready"} <= paths.keys()
    schema = paths[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["temperature"]["anyOf"][0]["maximum"] == 2
