"""LiteLLM is loaded only where it is needed. That it is warm when `/ready` says so: see test_traces.py."""

import hashlib
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import PROJECT, Process, environment
from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import Ask, running
from tests.wire import HELLO

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


def test_vendors_that_speak_openais_protocol_need_no_litellm() -> None:
    rows = {str(index): {"upstream": upstream} for index, upstream in enumerate(DIRECT)}
    code = (
        "import sys\nfrom starlette.testclient import TestClient\n"
        "from app.config import Settings\nfrom app.main import create_app\n"
        f"with TestClient(create_app(Settings(models={rows!r}, default_model='0'))) as client:\n"
        "    assert client.get('/ready').status_code == 200\n"
        "assert 'litellm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment(), check=True)  # noqa: S603 - our own command


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
        assert upstream.closed.wait(1)
        took.append((upstream.closed_at or 0) - left_at)
    assert statistics.median(took) < 0.2
    stub.default = Behaviour()
    assert ask("gemini").json["content"] == TEXT
