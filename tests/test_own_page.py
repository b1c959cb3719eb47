"""Every file of docs/own-endpoints.md works as it stands: it passes its own tests. Types and style: test_style.py."""

import contextlib
import json
import os
import re
import shutil
import sys
import urllib.request
from pathlib import Path

import pytest

from operations.servers import Program, free_port
from workspace import ROOT, run

TEMPLATE = ROOT / "template"
PAGE = (TEMPLATE / "docs/own-endpoints.md").read_text("utf-8")
FILES = dict(re.findall(r"```(?:python|md)\n(?:#|<!--) (\S+\.(?:py|md))(?: -->)?\n(.*?)```", PAGE, re.DOTALL))
LINES_OF_A_PRODUCT = 120
TOOLS = Path(sys.executable).parent

OTHERS = '''"""What the page shows of other libraries."""

import pytest
from mcp import Client
from mcp.server import MCPServer
from pydantic_ai import Agent

from app.agents import model_for
from app.llm.tools import ToolResult
from app.mcp_tools import tools_of
from evals.triage import score
from tests.fakes import FakeLLM, tool


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_pydantic_ai_stands_on_our_client() -> None:
    fake = FakeLLM(tool("weather", city="Lisbon"), "It is sunny.")
    agent = Agent(model_for(fake), system_prompt="Be brief.")

    @agent.tool_plain
    def weather(city: str) -> str:
        """Return the weather."""
        return f"Sun in {city}"

    result = await agent.run("Weather in Lisbon?")
    assert result.output == "It is sunny."
    assert [message["role"] for message in fake.requests[1]["messages"]] == ["system", "user", "assistant", "tool"]
    assert fake.requests[1]["messages"][-1]["content"] == "Sun in Lisbon"
    assert result.usage.input_tokens == 6


@pytest.mark.anyio
async def test_the_tools_of_an_mcp_server_are_called() -> None:
    server = MCPServer("weather")

    @server.tool()
    def weather(city: str) -> str:
        """Return the weather."""
        if city != "Lisbon":
            raise ValueError("Which city?")
        return "Sun"

    fake = FakeLLM(tool("weather", city="Lisbon"), tool("weather", city="?"), "It is sunny.")
    async with Client(server) as client:
        tools = await tools_of(client)
        run = fake.run(messages=[{"role": "user", "content": "Weather?"}], tools=tools)
        first, second = [event async for event in run if isinstance(event, ToolResult)]
    assert (first.result, second.is_error) == ("Sun", True)
    assert fake.requests[0]["tools"][0]["function"]["description"] == "Return the weather."


@pytest.mark.anyio
async def test_the_evals_score() -> None:
    assert await score(FakeLLM('{"team": "billing", "urgent": false}')) == 0.5
'''


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as it stands, without a database, with every file of the page."""
    return with_the_page(tmp_path_factory.mktemp("product"))


def with_the_page(product: Path) -> Path:
    """Copy the template as it stands, without a database, and every file of the page into a folder; return that."""
    left = shutil.ignore_patterns("__pycache__", ".*_cache", "template", "database")
    for folder in ("app", "tests"):
        shutil.copytree(TEMPLATE / folder, product / folder, ignore=left)
    for name in ("pytest.ini", "mypy.ini", "ruff.toml"):
        shutil.copy(TEMPLATE / name, product)
    for name, text in FILES.items():
        (product / name).parent.mkdir(exist_ok=True, parents=True)
        (product / name).write_text(text, "utf-8")
    (product / "tests/test_others.py").write_text(OTHERS, "utf-8")
    (product / "evals/__init__.py").touch()
    return product


def test_the_page_has_the_files_that_its_own_py_imports() -> None:
    assert len(FILES) > 10
    for module in re.findall(r"^from app import (.*)", FILES["app/own.py"], re.MULTILINE)[0].split(", "):
        assert f"app/{module}.py" in FILES


@pytest.mark.parametrize(
    "name", ["app/triage.py", "app/chat.py", "app/orders.py", "app/support.py", "app/assistant.py"]
)
def test_a_product_is_short(name: str) -> None:
    assert len(FILES[name].splitlines()) < LINES_OF_A_PRODUCT


def test_the_files_of_the_page_pass_their_tests(product: Path) -> None:
    said = run(
        TOOLS / "pytest",
        "--quiet",
        "-p",
        "no:cacheprovider",
        "tests/test_product.py",
        "tests/test_others.py",
        cwd=product,
    )
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said


def test_the_files_of_the_page_start_as_they_are_copied(product: Path) -> None:
    """Without a settings file, a key or a network."""
    port = free_port()
    env = {"PATH": os.environ["PATH"], "APP_PORT": str(port), "APP_ENV_FILE": ""}

    def is_open() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/opening-hours") as answer:
            return bool(answer.read() == b'"9 to 5"')
        return False

    with Program(sys.executable, "-m", "app", ready=is_open, cwd=product, env=env):
        pass


SNIPPET = """
const shown = [], handlers = {}, headers = {}, conversation = "c", text = "Hello";
const show = (event, isError) => shown.push([event, isError]);
globalThis.addEventListener = (name, handler) => (handlers[name] = handler);
let given;
globalThis.fetch = async (_, options) => {
  given = options.signal;
  const pieces = [
    'data: {"a": 1}\\n', '\\n: ping\\ndata: {"b"', ': 2}\\n\\n',
    ': ping\\nevent: error\\ndata: {"c": 3}\\n\\ndata: [DONE]\\n\\n',
  ];
  return new Response(new Blob(pieces).stream());
};
%s
handlers.pagehide();
console.log(JSON.stringify([shown, given.aborted]));
"""


def test_the_pages_script_for_a_browser_reads_events_and_errors_behind_comments(tmp_path: Path) -> None:
    [script] = re.findall(r"```js\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "page.mjs").write_text(SNIPPET % script)
    said = json.loads(run(TOOLS / "node", "page.mjs", cwd=tmp_path))
    assert said == [[[{"a": 1}, False], [{"b": 2}, False], [{"c": 3}, True]], True]


def test_nothing_that_a_team_registers_breaks_the_tests_of_the_service(product: Path, tmp_path: Path) -> None:
    """Neither a lifespan that can't work here, nor a setting that must be given, in this process or in others."""
    broken = shutil.copytree(product, tmp_path / "product")
    own = (
        FILES["app/own.py"]
        .replace("    shop: str =", "    database: str\n    shop: str =")
        .replace("        app.state.session = session\n", "        raise RuntimeError\n")
    )
    (broken / "app/own.py").write_text(own, "utf-8")
    names = [
        "test_logs.py::test_every_line_of_a_server_is_json",
        "test_metrics.py::test_two_workers_show_their_sum_whichever_is_asked",
    ]
    tests = [f"tests/{name}" for name in names]
    said = run(TOOLS / "pytest", "--quiet", "-p", "no:cacheprovider", *tests, cwd=broken)
    assert "2 passed" in said, said
