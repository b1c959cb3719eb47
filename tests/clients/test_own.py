"""A useChat page shows what an own endpoint streams; AI SDK, LangChain and OpenAI's client talk to an own model."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import copier
import openai
import pytest

from clients.test_clients import KEY, TOOLS, _is_ready
from operations.servers import Program, free_port
from workspace import ROOT, run

PAGE = (ROOT / "template/docs/own-endpoints.md").read_text("utf-8")
OWN = '''"""The agent of docs/own-endpoints.md, tools that work, or take long, a stream that fails, and a model."""

import asyncio
from collections.abc import AsyncGenerator

from fastapi import APIRouter

from app import orders
from app.dependencies import LLM
from app.errors import InvalidRequest
from app.http.event_stream import EventStream
from app.http.ui_messages import ui_message_stream
from app.llm.client import LLMClient
from app.models import ChatChunk, ChatRequest

router = APIRouter()


async def support(request: ChatRequest, llm: LLMClient) -> AsyncGenerator[str | ChatChunk, None]:
    yield "Support: "
    async for chunk in llm.stream(model="demo", messages=request.messages):
        yield chunk


async def words() -> AsyncGenerator[str, None]:
    yield "Hello"
    raise InvalidRequest("Not today.")


@router.post("/failing/chat")
async def failing() -> EventStream:
    return ui_message_stream(words())


async def parcel(order: str) -> dict[str, str]:
    """Return where a parcel is."""
    return {"order": order, "at": "the harbour"}


async def slow(order: str) -> str:
    """Look an order up for a long time."""
    try:
        await asyncio.sleep(600)
    finally:
        ended.append("slow")
    return order


ended: list[str] = []
public = APIRouter()
public.get("/ended")(lambda: ended)
ASKED = [{"role": "user", "content": "Where is A7?"}]


@router.post("/parcel/chat")
async def ask_parcel(llm: LLM) -> EventStream:
    return ui_message_stream(llm.run(model="demo", messages=ASKED, tools=[parcel]))


@router.post("/slow/chat")
async def ask_slow(llm: LLM) -> EventStream:
    return ui_message_stream(llm.run(model="demo", messages=ASKED, tools=[slow], tool_timeout=600, timeout=600))


routers = [orders.router, router]
public_routers = [public]
models = {"support": support}
'''


@pytest.fixture(scope="module")
def served(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A generated project with these; its address."""
    project = tmp_path_factory.mktemp("own") / "project"
    copier.run_copy(str(source), project, defaults=True, quiet=True)
    (project / "app/own.py").write_text(OWN, "utf-8")
    [orders] = re.findall(r"```python\n# app/orders\.py\n(.*?)```", PAGE, re.DOTALL)
    (project / "app/orders.py").write_text(orders, "utf-8")
    port = free_port()
    models = {"demo": {"upstream": "demo/echo"}, "support": {"upstream": "own/support"}}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "OPENAI_"))} | {
        "APP_PORT": str(port),
        "APP_MODELS": json.dumps(models),
        "APP_DEFAULT_MODEL": "demo",
        "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}}),
    }
    with Program(sys.executable, "-m", "app", ready=lambda: _is_ready(port), cwd=project, env=env):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def said(served: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the session in Node saw."""
    folder = shutil.copytree(
        ROOT / "tests/clients/ui", tmp_path_factory.mktemp("ui") / "page", ignore=shutil.ignore_patterns("node_modules")
    )
    trusting = os.environ | {"NODE_USE_SYSTEM_CA": "1"}  # as uv and pip do, where a company's proxy stands in between
    run(TOOLS / "npm", "ci", "--no-audit", "--no-fund", cwd=folder, env=trusting)
    return json.loads(run(TOOLS / "node", "session.mjs", served, KEY, cwd=folder).splitlines()[-1])


def test_a_page_shows_the_answer_and_the_tools_of_an_own_endpoint(said: Any) -> None:
    page = said["page"]
    parts = {part["type"]: part for part in page["parts"]}
    assert parts["data-progress"]["data"] == "Looking"
    assert parts["tool-order_status"]["state"] == "output-error"
    assert parts["tool-order_status"]["input"] == {"order": "demo"}
    assert parts["tool-order_status"]["errorText"] == "There is no order demo. Ask for its number."
    assert parts["text"]["text"] == "You said: There is no order demo. Ask for its number."
    assert parts["text"]["state"] == "done"
    assert page["drawn"] > 2, "it was shown bit by bit"


def test_a_page_shows_what_a_tool_has_found(said: Any) -> None:
    parts = {part["type"]: part for part in said["parcel"]["parts"]}
    assert parts["tool-parcel"]["state"] == "output-available"
    assert parts["tool-parcel"]["output"] == {"order": "demo", "at": "the harbour"}
    assert "the harbour" in parts["text"]["text"]
    assert said["parcel"].get("error") is None


def test_a_page_that_stops_ends_the_tool_on_the_server(said: Any) -> None:
    parts = {part["type"]: part for part in said["stopped"]["parts"]}
    assert parts["tool-slow"]["state"] == "input-available"
    assert said["ended"] == [[], ["slow"]]


def test_a_page_is_told_of_an_error_amid_its_stream(said: Any) -> None:
    assert said["failing"]["error"] == "Not today."
    assert [part["text"] for part in said["failing"]["parts"] if part["type"] == "text"] == ["Hello"]


def test_an_own_model_answers_the_ai_sdk(said: Any) -> None:
    assert said["sdk"] == ["Support: You said: Hello", "Support: You said: Hello", "stop", 4]


def test_an_own_model_answers_langchain(said: Any) -> None:
    assert said["langchain"] == ["Support: You said: Hello"] * 2


def test_an_own_model_answers_openais_client(served: str) -> None:
    with openai.OpenAI(base_url=f"{served}/v1", api_key=KEY, max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        answer = client.chat.completions.create(model="support", messages=messages)
        chunks = client.chat.completions.create(model="support", messages=messages, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert answer.choices[0].message.content == text == "Support: You said: Hello"
    assert answer.usage
    assert answer.usage.total_tokens == 4
