"""No secret and no prompt comes out anywhere, whatever fails; and no request gets at LiteLLM's own controls."""

import gc
import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import APIRouter

from app import own
from app.config import Settings
from app.llm.failures import redact
from app.main import create_app
from tests.serving import Backend, serve
from tests.stub import TEXT, Behaviour, Stub
from tests.template import leaks
from tests.template.faults import FAULTS
from tests.template.leaks import CANARY, EMBEDDINGS, KEYS, PROMPT
from tests.template.running import Ask, row, running, said_by
from tests.wire import CHAT, HELLO

OFTEN = """400 without a body|400|401|429|500|502 as an HTML page|no answer, the connection closed|200 with an error|\
JSON that breaks off|cut within a whole answer|an error event|a chunk of broken JSON|cut between events|\
headers that don't come|a stream that stalls""".split("|")
"""The faults that are tried here; each of them takes its time on every way."""
FEW = (
    "400 without a body",
    "502 as an HTML page",
    "JSON that breaks off",
    "cut between events",
    "a stream that stalls",
)
"""Those of them for the other format, which has the same lines, written in another way: one of each kind."""

faulty = APIRouter()


@faulty.post("/fails")
async def fails() -> None:
    logging.getLogger("theirs").error("a library fails", exc_info=ValueError(f"{PROMPT} {CANARY}"))
    raise RuntimeError(f"{PROMPT} {CANARY}")


@pytest.fixture
def logging_given_back() -> Iterator[None]:
    """Give back the process's logging, which each app sends to the stdout that it finds."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.filterwarnings("ignore")  # LiteLLM runs in this process, and warns of itself
@pytest.mark.usefixtures("logging_given_back")
@pytest.mark.parametrize(("log_format", "faults"), [("console", FEW), ("json", OFTEN)], ids=["console", "json"])
def test_no_secret_and_no_prompt_comes_out_whatever_fails(
    stub: Stub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    log_format: str,
    faults: Sequence[str],
) -> None:
    for name, value in leaks.environment(stub).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(own, "routers", [faulty], raising=False)
    monkeypatch.setattr(logging.getLogger("httpx2"), "disabled", True)  # the test's own client
    settings = Settings(**leaks.settings(stub) | {"log_format": log_format})
    app = create_app(settings)
    assert CANARY not in f"{settings!r} {app.state.upstreams.targets!r}"
    with serve(app) as url:
        while httpx2.get(f"{url}/ready", timeout=60).status_code != 200:
            time.sleep(0.1)
        answers = list(leaks.walk(url, stub, [FAULTS[name] for name in faults]))
    gc.collect()  # calls that LiteLLM has left, which warn at their end
    out, err = capfd.readouterr()
    assert len(answers) > 100
    assert sum("path=" in line or '"path":' in line for line in out.splitlines()) >= len(answers)
    assert "a library fails" in out
    for text in [*answers, *out.splitlines(), *err.splitlines()]:
        assert CANARY not in text
        assert PROMPT not in text


@pytest.mark.parametrize(
    "env",
    [
        {"APP_LIMIT_STORAGE": f"valkey://:{CANARY}@host"},
        {"APP_MODELS": json.dumps({"m": {"upstream": "openai/m", "api_base": f"https://user:{CANARY}@host/v1"}})},
        {"APP_MODELS": '{"m": "' + CANARY},
        {"APP_CALLERS": json.dumps({"web": {"key_sha256": CANARY}})},
        {"APP_CALLERS": json.dumps({"web": {"key_sha256": [CANARY], "keys": [{"sha256": CANARY}]}})},
        {"APP_CALLERS": CANARY},
        {"APP_PORT": CANARY},
        {"APP_AUTH": json.dumps({"jwt": {"issuer": CANARY}})},
    ],
    ids=str,
)
def test_a_start_that_fails_shows_no_value(env: dict[str, str]) -> None:
    code, [line] = said_by(env=KEYS | env)
    assert code == 1
    assert "APP_" in line or "setting" in line
    assert CANARY not in line


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: {0}.",
        "Bearer {0}",
        "key={0}&x=1",
        '"x-api-key": "{0}"',
        "sk-proj-abcdefghijklmnop",
        "Authorization: Bearer abcdef.ghijkl",
        "AIza-SyA1234567890abcdef",
        "xai-abcdefghijkl, gsk_abcdefghijkl",
    ],
)
def test_a_providers_text_is_told_without_keys(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SOME_VENDOR_API_KEY", "0123456789abcdef")
    shown = redact(text.format("0123456789abcdef"))
    assert "[removed]" in shown
    for secret in ("0123456789abcdef", "abcdefgh", "abcdef.ghijkl", "SyA1234"):
        assert secret not in shown


LOGIN = "hunter2-of-the-rack"
"""A key in a variable whose name does not say so."""
CHUNK = {"id": "a", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}
PIECE = f"data: {json.dumps(CHUNK)}\n\n"


@pytest.fixture(scope="module")
def racked() -> Iterator[tuple[Ask, Stub]]:
    """Models of which one has such a key."""
    with Stub() as stub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RACK_LOGIN", LOGIN)
        models = {
            "direct": row(stub, api_key_env="RACK_LOGIN"),
            "litellm": row(stub, api_key_env="RACK_LOGIN", protocol="litellm"),
            "anthropic": {
                "upstream": "anthropic/claude-sonnet-4-5",
                "api_base": stub.url,
                "api_key_env": "RACK_LOGIN",
            },
            "another": row(stub),
        }
        with running("key", models) as ask:
            yield ask, stub


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["direct", "litellm", "anthropic", "another"])
@pytest.mark.parametrize("kind", ["refuses", "refuses in its answer", "refuses later"])
def test_a_key_is_a_secret_whatever_its_variable_is_called(
    racked: tuple[Ask, Stub], model: str, kind: str, stream: bool
) -> None:
    ask, stub = racked
    error = {"error": {"message": f"bad login {LOGIN}", "type": "invalid_request_error", "code": f"x{LOGIN}"}}
    events = "" if kind == "refuses in its answer" else PIECE
    stub.forget()
    if kind == "refuses":
        stub.queue(Behaviour(status=400, body=json.dumps(error).encode()))
    elif stream:
        text = f"{events}data: {json.dumps(error)}\n\n".encode()
        stub.queue(Behaviour(body=text, headers={"content-type": "text/event-stream"}))
    else:
        stub.queue(Behaviour(body=json.dumps(error).encode()))
    call = ask(model, stream=stream)
    shown = "".join(call.events) if call.status == 200 else call.body.decode()
    assert LOGIN not in shown
    if model != "anthropic" or kind == "refuses":
        assert "bad login [removed]" in shown


# LiteLLM's own controls. The names are those of its completion(), and of what it reads from metadata.

CONTROLS: dict[str, Any] = {
    "api_base": "URL",
    "base_url": "URL",
    "api_key": "stolen",
    "api_version": "1",
    "api_type": "azure",
    "organization": "org",
    "custom_llm_provider": "openai",
    "mock_response": "FAKE",
    "mock_tool_calls": [{"id": "FAKE", "type": "function", "function": {"name": "FAKE", "arguments": "{}"}}],
    "mock_timeout": True,
    "mock_delay": 0,
    "extra_headers": {"X-Smuggled": "yes", "Host": "evil"},
    "headers": {"X-Smuggled": "yes"},
    "default_headers": {"X-Smuggled": "yes"},
    "extra_body": {"api_base": "URL", "smuggled": True},
    "extra_query": {"smuggled": "1"},
    "callbacks": ["URL"],
    "success_callback": ["generic_api"],
    "failure_callback": ["generic_api"],
    "logger_fn": "print",
    "metadata": {"callbacks": ["URL"], "generic_api_url": "URL", "langfuse_host": "URL", "endpoint": "URL"},
    "litellm_metadata": {"callbacks": ["URL"]},
    "litellm_params": {"api_base": "URL"},
    "litellm_call_id": "x",
    "litellm_logging_obj": {},
    "model_list": [{"model_name": "gpt-4o", "litellm_params": {"model": "openai/x", "api_base": "URL"}}],
    "fallbacks": [{"model": "openai/x", "api_base": "URL"}],
    "context_window_fallback_dict": {"gpt-4.1": "openai/x"},
    "num_retries": 50,
    "max_retries": 50,
    "timeout": 0.001,
    "request_timeout": 0.001,
    "client": "x",
    "shared_session": "x",
    "proxy": "URL",
    "http_client": "URL",
    "ssl_verify": False,
    "aws_bedrock_runtime_endpoint": "URL",
    "vertex_credentials": "/etc/passwd",
    "azure_ad_token": "stolen",
    "langfuse_host": "URL",
    "drop_params": True,
    "additional_drop_params": ["messages"],
    "allowed_openai_params": ["api_base"],
    "prompt_id": "x",
    "prompt_variables": {},
    "guardrails": ["x"],
    "caching": True,
    "cache": {"no-cache": False},
    "no-log": True,
    "use_in_pass_through": True,
    "use_litellm_proxy": True,
    "acompletion": False,
    "_skip_mcp_handler": False,
    "input_cost_per_token": 0,
    "mcp_servers": [{"url": "URL"}],
}


@pytest.fixture(scope="module")
def client(headers: dict[str, str]) -> Iterator[httpx2.Client]:
    with httpx2.Client(headers=headers, timeout=60) as client:
        yield client


def at(url: str, value: Any) -> Any:
    return json.loads(json.dumps(value).replace("URL", url))


def is_answered_by_its_provider(backend: Backend, client: httpx2.Client, body: dict[str, Any]) -> bool:
    """Ask; return whether the model's own provider answered, or hold the refusal to be one of the request."""
    seen = len(backend.stub.requests)
    path = CHAT if "messages" in body else EMBEDDINGS
    response = client.post(backend.process.url + path, json=body)
    assert "FAKE" not in response.text
    for request in backend.stub.requests[seen:]:
        assert "smuggled" not in f"{request.path} {request.headers}".lower()
        assert "stolen" not in str(request.headers)
        assert request.headers["host"] in backend.stub.url
    if response.status_code == 422:
        assert len(backend.stub.requests) == seen
        return False
    assert response.status_code == 200, response.text
    assert len(backend.stub.requests) == seen + 1
    assert path != CHAT or body.get("stream") or response.json()["content"] == TEXT
    return True


@pytest.mark.parametrize("way", ["direct", "litellm", "anthropic"])
def test_a_control_at_the_top_is_refused_or_means_nothing(backend: Backend, client: httpx2.Client, way: str) -> None:
    with Stub() as evil:
        controls = at(f"{evil.url}/v1", CONTROLS)

        def ask(name: str) -> tuple[str, bool]:
            body = {"model": way, "messages": HELLO, name: controls[name]}
            return name, is_answered_by_its_provider(backend, client, body)

        answered = {name for name, told in map(ask, controls) if told}
        assert evil.requests == []
    # On the direct way a field is JSON for the provider, and nothing else.
    assert answered == (set(CONTROLS) if way == "direct" else set())


PLACES: dict[str, Any] = {
    "a message": lambda controls: {"messages": [HELLO[0] | controls]},
    "a part": lambda controls: {"messages": [{"role": "user", "content": [controls | {"type": "text", "text": "Hi"}]}]},
    "a tool": lambda controls: {"tools": [controls | {"type": "function", "function": {"name": "f"}}]},
    "a function": lambda controls: {"tools": [{"type": "function", "function": controls | {"name": "f"}}]},
    "a schema": lambda controls: {
        "response_format": {"type": "json_schema", "json_schema": controls | {"name": "f", "schema": {}}}
    },
    "stream_options": lambda controls: {"stream": True, "stream_options": controls},
}


@pytest.mark.parametrize("way", ["direct", "litellm", "anthropic"])
@pytest.mark.parametrize("place", PLACES)
def test_controls_deeper_in_mean_nothing(backend: Backend, client: httpx2.Client, way: str, place: str) -> None:
    with Stub() as evil:
        # An address within a part is for the provider to fetch, and has tests of its own.
        controls = at(f"{evil.url}/v1", CONTROLS)
        if place == "a part":
            controls = {name: value for name, value in controls.items() if evil.url not in str(value)}
        body = {"model": way, "messages": HELLO} | PLACES[place](controls)
        assert is_answered_by_its_provider(backend, client, body)
        assert evil.requests == []


@pytest.mark.parametrize("way", ["direct", "litellm-embeddings"])
def test_controls_of_embeddings_are_refused_or_mean_nothing(backend: Backend, client: httpx2.Client, way: str) -> None:
    with Stub() as evil:
        controls = at(f"{evil.url}/v1", CONTROLS)

        def ask(name: str) -> bool:
            body = {"model": way, "input": "Hello", name: controls[name]}
            return is_answered_by_its_provider(backend, client, body)

        assert set(map(ask, controls)) == {way == "direct"}
        assert evil.requests == []
