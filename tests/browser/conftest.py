"""A rendered project under `python -m app --dev`, a provider of our own behind it, and Debian's Chromium before it."""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import copier
import pytest
from playwright.sync_api import Browser, ViewportSize, sync_playwright

from browser.tab import KEY, MakeTab, Stub, Tab, behave
from workspace import debian

START_SECONDS = 60
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # so there is no network
]


OWN = '''"""Ours: a model that calls a tool of its own."""

from collections.abc import AsyncGenerator

from app.llm.client import LLMClient
from app.llm.tool_loop import RunEvent
from app.models import ChatRequest


async def weather(city: str) -> str:
    return f"Sun in {city}"


async def agent(request: ChatRequest, llm: LLMClient) -> AsyncGenerator[RunEvent, None]:
    async for event in llm.run(model="demo", messages=request.messages, tools=[weather]):
        yield event


models = {"agent": agent}
'''


@pytest.fixture(scope="session")
def stub() -> Iterator[Any]:
    """The provider of the model `stub`; every test finds it well-behaved."""
    with Stub() as stub:
        yield stub


@pytest.fixture(autouse=True)
def _stub_behaves(stub: Any) -> None:
    behave(stub)
    stub.requests.clear()


@pytest.fixture(scope="session")
def project(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with default answers, and a model of its own."""
    destination = tmp_path_factory.mktemp("browser") / "project"
    copier.run_copy(str(source), destination, defaults=True, quiet=True)
    (destination / "app/own.py").write_text(OWN, "utf-8")
    return destination


@pytest.fixture(scope="session")
def dev(project: Path, stub: Any) -> Iterator[str]:
    """The project under `python -m app --dev`; its address."""
    with _serving(project, "--dev", **_models(stub)) as url:
        yield url


@pytest.fixture(scope="session")
def fresh(project: Path) -> Iterator[str]:
    """The project under `python -m app --dev` with nothing set, as on the first day; its address."""
    with _serving(project, "--dev") as url:
        yield url


@pytest.fixture(scope="session")
def closed(project: Path, stub: Any) -> Iterator[str]:
    """The project as it is served to callers with a key; its address."""
    callers = {"browser": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}}
    with _serving(project, **_models(stub), APP_PLAYGROUND="true", APP_CALLERS=json.dumps(callers)) as url:
        yield url


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. It ends with this package's tests: while it runs, Playwright's loop is the thread's current
    one, and no later test of the same worker could run its own."""
    path = debian("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser, dev: str) -> Iterator[MakeTab]:
    """Open the playground in a fresh profile; what the browser complains about fails the test, unless it is taken."""
    with contextlib.ExitStack() as stack:
        tabs: list[Tab] = []

        def make(url: str = dev, *, width: int = 1280, height: int = 800, **options: Any) -> Tab:
            size = ViewportSize(width=width, height=height)
            context = stack.enter_context(browser.new_context(viewport=size, **options))
            tab = Tab(context.new_page(), url)
            tabs.append(tab)
            tab.page.on("request", lambda request: tab.requests.append(request.url))
            tab.page.on("requestfinished", lambda request: _weigh(tab, request))
            tab.page.on("pageerror", lambda error: tab.faults.append(str(error)))
            tab.page.on("console", lambda message: tab.faults.append(message.text))
            tab.open()
            return tab

        yield make
        for tab in tabs:
            assert tab.faults == []
            assert [address for address in tab.requests if not address.startswith((tab.url, "data:"))] == []


@pytest.fixture
def show_figures(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print what a test has measured to the terminal, past pytest's capture and out of xdist's workers too."""

    def show(figures: str) -> None:
        with capsys.disabled():
            sys.stderr.write(f"\n{figures}\n")

    return show


def _weigh(tab: Tab, request: Any) -> None:
    if request.method == "GET" and request.url.startswith("http"):
        tab.received[request.url.removeprefix(tab.url)] = request.sizes()["responseBodySize"]


def _models(stub: Any) -> dict[str, str]:
    models = {
        "stub": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1", "price": {"input": 1, "output": 10}},
        "demo": {"upstream": "demo/echo"},
        "gpt-4o": {"upstream": "openai/gpt-4o"},
        "agent": {"upstream": "own/agent"},
    }
    return {"APP_MODELS": json.dumps(models), "APP_DEFAULT_MODEL": "stub", "APP_RETRIES": "0"}


@contextlib.contextmanager
def _serving(project: Path, *arguments: str, **variables: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "OPENAI_"))}
    env |= {"APP_PORT": str(port)}
    log = project.parent / f"{port}.log"
    with log.open("w") as output:
        # --dev reloads, so it is two processes: a session of their own ends both.
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            cwd=project,
            env=env | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for_health(process, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_for_health(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/health")
            if connection.getresponse().status == http.client.OK:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the server didn't start:\n{log.read_text()}")
