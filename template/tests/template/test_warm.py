"""LiteLLM is loaded only where it is needed. That it is warm when `/ready` says so: see test_traces.py."""

import hashlib
import http.client
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.serving import Process
from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import Ask, running
from tests.wire import CHAT, HELLO

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")

DIRECT = (
    "groq/llama",
    "deepseek/deepseek-chat",
    "mistral/m",
    "xai/grok-4",
    "openrouter/o/m",
    "gemini/gemini-2.5-flash",
)


@dataclass
class Plain:
    """A server that needs neither LiteLLM nor OpenTelemetry's SDK, and has answered.

    Attributes:
        ready: the status of `/ready`.
        statuses: those of the answers, by the model.
        asked: the headers that the provider of a model got.
        imported: names of all modules that the server has imported.
    """

    ready: int
    statuses: dict[str, int]
    asked: Mapping[str, str]
    imported: set[str]


@pytest.fixture(scope="module")
def plain(key: str) -> Plain:
    with Stub() as stub:
        models = {upstream: {"upstream": upstream} for upstream in DIRECT}
        asked = {
            "gpt-4o": {"upstream": "gpt-4o", "api_base": f"{stub.url}/v1"},
            "demo": {"upstream": "demo/echo"},
        }
        env = {
            "APP_MODELS": json.dumps(models | asked),
            "APP_DEFAULT_MODEL": "demo",
            "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}}),
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            "PYTHONPROFILEIMPORTTIME": "1",  # prints each module as it is imported
        }
        with Process(env=env) as process, httpx2.Client(base_url=process.url, timeout=60) as client:
            ready = client.get("/ready").status_code
            headers = {"Authorization": f"Bearer {key}"}
            statuses = {
                model: client.post(CHAT, json={"model": model, "messages": HELLO}, headers=headers).status_code
                for model in asked
            }
            process.terminate()
            process.wait()
        lines = [line for line in process.lines if line.startswith("import time:")]
        imported = {line.rpartition("|")[2].strip() for line in lines}
        return Plain(ready, statuses, stub.requests[-1].headers, imported)


def test_vendors_that_speak_openais_protocol_need_no_litellm(plain: Plain) -> None:
    assert (plain.ready, plain.statuses) == (200, {"gpt-4o": 200, "demo": 200})
    assert "app.llm.direct" in plain.imported
    assert not {name for name in plain.imported if name.partition(".")[0] == "litellm"}


def test_without_telemetry_nothing_of_the_sdk_is_imported_and_no_provider_is_told_of_a_trace(plain: Plain) -> None:
    assert "traceparent" not in plain.asked
    assert "opentelemetry.trace" in plain.imported
    assert not {name for name in plain.imported if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))}


def test_a_litellm_that_can_not_be_imported_says_why(tmp_path: Path, key: str) -> None:
    (tmp_path / "litellm").mkdir()
    (tmp_path / "litellm/__init__.py").write_text("raise ImportError('a broken wheel')")
    models = {"m": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": "http://127.0.0.1:9"}}
    env = {
        "PYTHONPATH": str(tmp_path),
        "APP_MODELS": json.dumps(models),
        "APP_DEFAULT_MODEL": "m",
        "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}}),
        "APP_RETRIES": "0",
    }
    with Process(env=env) as process:
        deadline = time.monotonic() + 20
        while "can't be loaded" not in process.output and time.monotonic() < deadline:
            time.sleep(0.02)
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=20)
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        assert (answer.status, b"LiteLLM can't be loaded" in answer.read()) == (503, True)
        for stream in (False, True):
            body = json.dumps({"model": "m", "messages": HELLO, "stream": stream})
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            error = json.loads(answer.read())["error"]
            assert (answer.status, error["code"]) == (503, "provider_not_configured")
            assert answer.headers["x-should-retry"] == "false"
            assert "a broken wheel" not in error["message"]
        connection.close()
        assert "a broken wheel" in process.output


@pytest.fixture
def ask(stub: Stub, key: str) -> Iterator[Ask]:
    row = {"upstream": "gemini/gemini-2.5-flash", "api_base": f"{stub.url}/v1beta", "protocol": "litellm"}
    with running(key, {"gemini": row}) as ask:
        yield ask


def test_a_caller_who_leaves_the_very_first_streams_closes_them_upstream(ask: Ask, stub: Stub) -> None:
    stub.default = Behaviour(stall_after=3)
    took = []
    for number in range(20):
        with ask("gemini", stream=True) as call:
            next(call.events)
        left_at = time.monotonic()
        upstream = stub.requests[number]
        assert upstream.closed.wait(20)
        took.append((upstream.closed_at or 0) - left_at)
    assert statistics.median(took) < 0.2
    stub.default = Behaviour()
    assert ask("gemini").json["content"] == TEXT
