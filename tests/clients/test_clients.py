"""One session each with real clients: OpenAI's and Anthropic's SDKs, AI SDK, and agent frameworks."""

import contextlib
import dataclasses
import hashlib
import http.client
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import copier
import httpx2
import pytest

from operations.servers import Behaviour, Program, Stub, free_port
from workspace import ROOT, run

HERE = Path(__file__).parent
TOOLS = Path(sys.executable).parent
KEY = "sk-app-test"
STEPS = "chat stream odd_events stream_helpers tools parse embeddings models errors retries cancellation".split()
CALL = Behaviour(tool_calls=(("weather", '{"city": "Zürich"}'),))

_odd: Any = importlib.import_module("tests.template.test_events")
ODD_EVENTS = _odd.HEAD + "".join(_odd.HARMLESS.values()) + _odd.TAIL + _odd.END + _odd.HARMLESS["null"] + _odd.DONE
DIALECT_STEPS = (
    "responses responses_tools responses_errors messages messages_tools messages_errors "
    "openai_agents pydantic_ai langchain"
).split()
LIBRARIES = (
    "openai==3.57.0", "anthropic==2.14.0", "openai-agents==0.24.0", "pydantic-ai-slim[openai,anthropic]==2.68.0",
    "langchain-openai==1.7.4",
)  # fmt: skip
SHELLS = {"exec_command": "cmd", "Bash": "command", "bash": "command", "run_commands": "commands"}
"""The shell tools of coding agents, and the argument that holds the command."""
COMMAND = "echo written by the agent > proof.txt"


def agent(body: Any) -> Any:
    """Call a tool that is offered, a shell or the weather, and answer when its result is there."""
    names = [tool["function"]["name"] for tool in body.get("tools") or ()]
    if not names or body["messages"][-1]["role"] == "tool":
        return Behaviour(text="Sunny.")
    shell = next((name for name in names if name in SHELLS), None)
    arguments = {SHELLS[shell]: COMMAND} if shell else {"city": "Zürich"}
    return Behaviour(tool_calls=((shell or "weather", json.dumps(arguments)),))


def thinker(body: Any) -> Any:
    """Think before it does what the agent does."""
    return dataclasses.replace(agent(body), thought="Hm, hm.")


PROVIDERS = {
    "agent": agent,
    "thinker": thinker,
    "stub": Behaviour(),
    "odd": Behaviour(body=ODD_EVENTS.encode(), headers=_odd.SSE),
    "anthropic": Behaviour(),
    "tools": Behaviour(),
    "tools-anthropic": Behaviour(),
    "refusing": Behaviour(status=400, code="context_length_exceeded"),
    "busy": Behaviour(),
    "busy-for-long": Behaviour(status=429, headers={"retry-after": "600"}),
    "broken": Behaviour(status=500),
    "misconfigured": Behaviour(status=401),
    "cut": Behaviour(cut_after=4, pace=0.01),
    "endless": Behaviour(repeat=1_000_000, pace=0.01),
    "silent": Behaviour(delay_headers=600),
}
"""How the provider of each model behaves."""

Backend = tuple[str, dict[str, Any]]
"""Its address, and the provider of each model."""


@pytest.fixture(scope="module")
def backend(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A generated project under `python -m app`."""
    project = tmp_path_factory.mktemp("clients") / "project"
    copier.run_copy(str(source), project, defaults=True, quiet=True)
    port = free_port()
    with ExitStack() as stack:
        stubs = {name: stack.enter_context(Stub(behaviour)) for name, behaviour in PROVIDERS.items()}
        models = {"demo": {"upstream": "demo/echo"}} | {name: _row(name, stub) for name, stub in stubs.items()}
        env = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "OPENAI_"))} | {
            "APP_PORT": str(port),
            "APP_MODELS": json.dumps(models),
            "APP_DEFAULT_MODEL": "demo",
            "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}}),
            "APP_RETRIES": "0",
        }
        stack.enter_context(Program(sys.executable, "-m", "app", ready=lambda: _is_ready(port), cwd=project, env=env))
        yield f"http://127.0.0.1:{port}/v1", stubs


def _row(name: str, stub: Any) -> dict[str, str]:
    if "anthropic" in name:
        return {"upstream": "anthropic/claude-sonnet-4-5", "api_base": stub.url}
    return {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    return False


@pytest.fixture
def stubs(backend: Backend) -> dict[str, Any]:
    """The provider of each model; none has received anything yet, and each knows what to say in a session."""
    _, stubs = backend
    for stub in stubs.values():
        stub.requests.clear()
    for name in ("tools", "tools-anthropic"):
        stubs[name].queue(CALL, Behaviour(), CALL)
    stubs["busy"].queue(Behaviour(status=429, headers={"retry-after": "1"}))
    return stubs


@pytest.mark.parametrize("version", ["2.54.0", "3.54.0"])
def test_openai_for_python(backend: Backend, stubs: dict[str, Any], tmp_path: Path, version: str) -> None:
    script = shutil.copy(HERE / "session.py", tmp_path)
    uv = os.environ.get("UV", "uv")
    client = (uv, "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable)
    output = run(*client, "--with", f"openai=={version}", "python", script, backend[0], KEY, cwd=tmp_path)
    check(output, stubs)


def test_openai_for_node(backend: Backend, stubs: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "tests/browser/openai", tmp_path / "client")
    trusting = os.environ | {"NODE_USE_SYSTEM_CA": "1"}  # as uv and pip do, where a company's proxy stands in between
    run(TOOLS / "npm", "ci", "--no-audit", "--no-fund", cwd=folder, env=trusting)
    shutil.copy(HERE / "session.mjs", folder)
    check(run(TOOLS / "node", "session.mjs", backend[0], KEY, cwd=folder), stubs)


def test_clients_of_the_other_dialects(backend: Backend, stubs: dict[str, Any], tmp_path: Path) -> None:
    script = shutil.copy(HERE / "dialects.py", tmp_path)
    uv = os.environ.get("UV", "uv")
    client = [uv, "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable]
    options = [option for library in LIBRARIES for option in ("--with", library)]
    output = run(*client, *options, "python", script, backend[0], KEY, cwd=tmp_path)
    assert output.split() == DIALECT_STEPS
    for name, stub in stubs.items():
        assert stub.wait_until(lambda stub=stub: stub.in_flight == 0), f"a call to {name} is still open"


def test_ai_sdk_in_several_turns(backend: Backend, stubs: dict[str, Any], tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("node_modules")
    folder = shutil.copytree(HERE / "ui", tmp_path / "client", ignore=ignored)
    trusting = os.environ | {"NODE_USE_SYSTEM_CA": "1"}
    run(TOOLS / "npm", "ci", "--no-audit", "--no-fund", cwd=folder, env=trusting)
    output = run(TOOLS / "node", "turns.mjs", backend[0], KEY, cwd=folder)
    models = ("demo", "agent", "thinker")
    assert output.split() == [f"{way}-{model}" for way in ("whole", "streamed") for model in models]
    for name in ("agent", "thinker"):
        messages = stubs[name].requests[-1].body["messages"]
        roles = ["user", "assistant", "tool", "assistant"] * 3
        assert [message["role"] for message in messages] == roles[:-1]
        assert [message["content"] for message in messages[3::4]] == ["Sunny.", "Sunny."]
        thoughts = {message.get("reasoning_content") for message in messages if message["role"] == "assistant"}
        assert thoughts == ({"Hm, hm."} if name == "thinker" else {None})


def test_what_open_webui_sends_is_answered(backend: Backend, stubs: dict[str, Any]) -> None:
    """Its connection of the type OpenAI, as its source has it: a list of models, a chat, and a title for the chat."""
    headers = {"Authorization": f"Bearer {KEY}", "X-OpenWebUI-User-Name": "Ada", "X-OpenWebUI-Chat-Id": "1"}
    messages = [
        {"role": "system", "content": "Be nice."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    asked: dict[str, Any] = {"model": "stub", "messages": messages}
    with httpx2.Client(base_url=backend[0], headers=headers, timeout=60) as web:
        assert "stub" in [model["id"] for model in web.get("/models").json()["data"]]
        streamed = web.post(
            "/chat/completions", json=asked | {"stream": True, "stream_options": {"include_usage": True}}
        )
        title = web.post("/chat/completions", json=asked | {"stream": False, "max_completion_tokens": 1000})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert '"completion_tokens"' in streamed.text
    assert title.json()["choices"][0]["message"]["content"]
    assert not [name for name in stubs["stub"].requests[-1].headers if "webui" in name]


def check(output: str, stubs: dict[str, Any]) -> None:
    """Hold what a session printed, and what the providers saw of it, against what it was to do."""
    assert output.split() == STEPS
    assert len(stubs["busy"].requests) == 2
    assert len(stubs["misconfigured"].requests) == 1, "the client was told not to try again"
    assert [len(stubs[name].requests) for name in ("endless", "silent")] == [2, 2]
    for name, stub in stubs.items():
        assert stub.wait_until(lambda stub=stub: stub.in_flight == 0), f"a call to {name} is still open"
