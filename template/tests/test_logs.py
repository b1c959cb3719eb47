"""Each request leaves one line, which says who asked which model, and never what."""

import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi import APIRouter
from starlette.testclient import TestClient

from app import own
from app.config import Settings
from app.main import create_app
from tests.conftest import MakeSettings
from tests.serving import Process, free_port
from tests.stub import PROMPT_TOKENS, TEXT, Behaviour, Stub

CHAT = "/v1/chat/completions"
CANARY = "a-prompt-that-nobody-logs"
COMPLETION_TOKENS = len(TEXT.split()) + 1

faulty = APIRouter()


@faulty.get("/fails")
async def fails() -> None:
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        logging.getLogger("theirs").exception("a library logs what it caught")
        raise


@pytest.fixture(autouse=True)
def logging_given_back() -> Iterator[None]:
    """Give back the process's logging: each app sends it to the stdout that it finds, here one that is read."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


class Logged:
    """An app with its output."""

    def __init__(self, settings: Settings, headers: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        self._settings, self._headers, self._capsys = settings, headers, capsys

    def lines(self, *requests: tuple[str, str, Any]) -> list[str]:
        """Send requests; return all the lines that the app writes from its start to its end."""
        with TestClient(create_app(self._settings), headers=self._headers) as client:
            for method, path, body in requests:
                client.request(method, path, json=body, headers={"X-Request-ID": "abc"})
        return self._capsys.readouterr().out.splitlines()

    def access(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Send one request; return its line of the JSON log, without what differs from run to run."""
        lines: list[dict[str, Any]] = [json.loads(line) for line in self.lines((method, path, body))]
        [line] = [line for line in lines if line["event"] == "request"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line.pop("timestamp"))
        assert line.pop("ms") >= 0
        return line


@pytest.fixture
def in_json(settings: MakeSettings, headers: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Logged:
    return Logged(settings(log_format="json"), headers, capsys)


def say(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} | fields


def line_of(**fields: Any) -> dict[str, Any]:
    common = {"event": "request", "level": "info", "method": "POST", "path": CHAT, "status": 200, "request_id": "abc"}
    return common | {"caller": "test"} | fields


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_logged_with_its_caller_model_and_tokens(in_json: Logged, stream: bool) -> None:
    line = in_json.access("POST", CHAT, say("Hello", stream=stream))
    assert line == line_of(model="gpt-4o", tokens_in=PROMPT_TOKENS, tokens_out=COMPLETION_TOKENS)


def test_embeddings_are_logged_with_their_tokens(in_json: Logged) -> None:
    line = in_json.access("POST", "/v1/embeddings", {"input": "Hello"})
    assert line == line_of(path="/v1/embeddings", model="gpt-4o", tokens_in=PROMPT_TOKENS, tokens_out=0)


def test_an_error_is_logged_with_its_code(in_json: Logged) -> None:
    line = in_json.access("POST", CHAT, say("Hello", model="no-such-model"))
    assert line == line_of(status=404, error="model_not_found")


def test_an_error_within_a_stream_is_logged_with_its_code(in_json: Logged, stub: Stub) -> None:
    stub.queue(Behaviour(cut_after=5, pace=0.01))
    line = in_json.access("POST", CHAT, say("Hello", stream=True))
    assert (line["status"], line["error"]) == (200, "provider_error")


def test_the_console_tells_the_same(
    settings: MakeSettings, headers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Logged(settings(log_format="console"), headers, capsys).lines(("POST", CHAT, say("Hello")))
    [line] = [line for line in lines if " request " in line]
    assert "\x1b" not in line
    fields = dict(re.findall(r"(\w+)=(\S+)", line))
    assert float(fields.pop("ms")) >= 0
    told = line_of(model="gpt-4o", tokens_in=PROMPT_TOKENS, tokens_out=COMPLETION_TOKENS)
    assert fields == {name: str(value) for name, value in told.items() if name not in ("event", "level")}


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_path_forges_a_line_or_reaches_the_terminal(
    settings: MakeSettings, headers: dict[str, str], capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    lines = Logged(settings(log_format=log_format), headers, capsys).lines(("GET", "/x%0Aforged%1b[31m", None))
    assert [line for line in lines if "forged" in line] == [line for line in lines if "404" in line]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_prompt_no_answer_and_no_key_is_logged_at_any_level(
    settings: MakeSettings,
    headers: dict[str, str],
    stub: Stub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log_format: str,
) -> None:
    monkeypatch.setattr(own, "routers", [faulty], raising=False)
    monkeypatch.setenv("OWN_KEY", f"sk-{CANARY}")
    entry = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1", "api_key_env": "OWN_KEY"}
    models = {"gpt-4o": entry, "litellm": entry | {"protocol": "litellm"}, "demo": {"upstream": "demo/echo"}}
    requests: list[tuple[str, str, Any]] = [
        ("POST", CHAT, say(CANARY, model=model, stream=stream))
        for model in models
        for stream in (False, True)
        for _ in range(3)
    ]
    stub.default = Behaviour(text=CANARY)
    refused, failed = Behaviour(status=400, message=CANARY), Behaviour(status=500, message=CANARY)
    stub.queue(*[stub.default, refused, failed] * 4)
    requests += [
        ("GET", "/fails", None),
        ("POST", CHAT, say(CANARY, temperature=CANARY)),
        ("POST", CHAT, [CANARY]),
        ("POST", "/v1/embeddings", {"input": CANARY}),
    ]
    lines = Logged(settings(models=models, log_format=log_format, log_level="debug"), headers, capsys).lines(*requests)
    assert len(stub.requests) == 13
    assert sum(CHAT in line for line in lines) >= len(requests) - 2
    assert any("RuntimeError" in line for line in lines)
    assert any("a library logs what it caught" in line for line in lines)
    assert not [line for line in lines if CANARY in line]
    assert not [line for line in lines if headers["Authorization"].removeprefix("Bearer ") in line]


def test_the_level_is_obeyed(
    settings: MakeSettings, headers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert Logged(settings(log_level="warning"), headers, capsys).lines(("POST", CHAT, say("Hello"))) == []


def test_a_model_without_its_key_is_warned_about_once_at_start(
    headers: dict[str, str], settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = Logged(settings(models={"gpt-4o": {"upstream": "openai/gpt-4o"}}, log_format="json"), headers, capsys)
    lines = [json.loads(line) for line in logged.lines(*[("POST", CHAT, say("Hello"))] * 2)]
    [warning] = [line for line in lines if line["level"] == "warning"]
    assert (warning["model"], warning["missing"]) == ("gpt-4o", "OPENAI_API_KEY")


def test_libraries_write_in_our_format_and_once_and_litellm_not_at_all(
    settings: MakeSettings, stub: Stub, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1", "protocol": "litellm"}
    with TestClient(create_app(settings(models={"gpt-4o": entry}, log_format="json"))) as client:
        while client.get("/ready").status_code != 200:
            time.sleep(0.05)
        for name in (names := ["uvicorn.error", "aiohttp.client", "theirs"]) + ["LiteLLM", "LiteLLM Router"]:
            logging.getLogger(name).warning("from a %s", "library")
    captured = capfd.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    heard = [line for line in lines if line["event"] == "from a library"]
    assert [(line["logger"], line["level"]) for line in heard] == [(name, "warning") for name in names]
    assert "library" not in captured.err


def test_every_line_of_a_server_is_json() -> None:
    with Process(env={"APP_LOG_FORMAT": "json"}) as process:
        process.terminate()
        process.wait(60)
    lines = [json.loads(line) for line in process.lines]
    assert {line["event"] for line in lines} >= {"request", "Application startup complete."}
    assert {line.get("logger") for line in lines} == {None, "uvicorn.error"}


@pytest.mark.parametrize("protocol", ["openai", "litellm"])
def test_a_container_that_calls_itself_is_told_of_its_host(
    settings: MakeSettings,
    headers: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
) -> None:
    """What a developer's machine calls localhost is nobody in a container."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    entry = {"upstream": "openai/m", "api_base": f"http://localhost:{free_port()}/v1", "protocol": protocol}
    logged = Logged(settings(models={"gpt-4o": entry}, log_format="json"), headers, capsys)
    lines = [json.loads(line) for line in logged.lines(("POST", CHAT, say("Hello")))]
    [line] = [line for line in lines if line["event"] == "provider can't be reached"]
    assert (line["level"], line["model"]) == ("warning", "gpt-4o")
    assert "Connect" in line["reason"]
    assert "host.docker.internal" in line["hint"]


def test_a_provider_elsewhere_that_can_not_be_reached_is_told_with_the_reason(
    settings: MakeSettings, headers: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    entry = {"upstream": "openai/m", "api_base": "http://llm.invalid/v1"}
    logged = Logged(settings(models={"gpt-4o": entry}, log_format="json"), headers, capsys)
    lines = [json.loads(line) for line in logged.lines(("POST", CHAT, say("Hello")))]
    [line] = [line for line in lines if line["event"] == "provider can't be reached"]
    assert line["reason"] == "gaierror"
    assert "hint" not in line
