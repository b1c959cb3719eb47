"""`python -m app` serves, manages keys, and says in one sentence what is wrong."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import uvicorn

from app.http.reloading import Reload
from tests.serving import PROJECT, Process
from tests.stub import TEXT, Stub
from tests.template.running import said_by

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
TABLE = """
[models.gpt-4o]
upstream = "openai/gpt-4o"
[models.local]
upstream = "openai/qwen3-8b"
api_base = "http://127.0.0.1:1/v1"
[models.keyed]
upstream = "openai/qwen3-8b"
api_base = "http://127.0.0.1:1/v1"
api_key_env = "LOCAL_API_KEY"
[models.demo]
upstream = "demo/echo"
"""


def toml(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, "utf-8")
    return path


# Serving.


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Process:
    """A server without callers, which was asked for an odd path, and which a SIGINT has ended."""
    with Process(settings=toml(tmp_path_factory.mktemp("closed"), 'name = "Ours"' + TABLE)) as process:
        with socket.create_connection(("127.0.0.1", process.port)) as connection:
            connection.sendall(b"GET /health%1b%5b2Jevil HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while connection.recv(4096):
                pass
        process.terminate(signal.SIGINT)
        process.wait(60)
    return process


@dataclass
class Opened:
    """A server with a caller, which a SIGTERM has ended.

    Attributes:
        process: the server.
        statuses: what it answered to the caller's key, and to another.
    """

    process: Process
    statuses: list[int]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, added: str, added_key: str) -> Opened:
    table = added[added.index("[callers.") :]
    assert list(tomllib.loads(table)["callers"]) == ['Team "A" 👋']
    settings = toml(tmp_path_factory.mktemp("open"), 'name = "Ours"\ndefault_model = "demo"' + TABLE + table)
    with Process(settings=settings) as process:
        statuses = [
            httpx2.post(
                process.url + CHAT, json={"messages": MESSAGES}, headers={"Authorization": f"Bearer {key}"}, timeout=60
            ).status_code
            for key in (added_key, f"{added_key}x")
        ]
        process.terminate(signal.SIGTERM)
        process.wait(60)
    return Opened(process, statuses)


def test_it_prints_where_it_listens(closed: Process) -> None:
    assert closed.lines[0] == f"Ours: {closed.url}"


def test_it_prints_which_models_can_answer_and_which_lack_a_key(opened: Opened) -> None:
    assert opened.process.lines[1:5] == [
        "  gpt-4o: needs OPENAI_API_KEY",
        "  local: ready",
        "  keyed: needs LOCAL_API_KEY",
        "  demo: ready",
    ]


def test_without_callers_it_prints_that_models_need_one(closed: Process) -> None:
    assert closed.lines[1:5] == [
        "  gpt-4o: needs OPENAI_API_KEY",
        "  local: needs a caller (python -m app callers add NAME)",
        "  keyed: needs LOCAL_API_KEY",
        "  demo: ready",
    ]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_with_exit_code_0(closed: Process, opened: Opened, number: str) -> None:
    process = closed if number == "SIGINT" else opened.process
    assert process.wait() == 0
    assert "Traceback" not in process.output


def test_it_prints_no_access_log_but_its_own(closed: Process) -> None:
    assert [line for line in closed.lines if "/health" in line] == [
        line for line in closed.lines if " request " in line
    ]


def test_a_path_with_controls_is_escaped_on_the_console(closed: Process) -> None:
    assert "path=/health\\x1b[2Jevil" in closed.output
    assert "\x1b" not in closed.output


def test_dev_serves_every_model_without_a_key_and_reloads_until_signals_come_together(
    tmp_path: Path, stub: Stub
) -> None:
    table = f'default_model = "m"\n[models.m]\nupstream = "m"\napi_base = "{stub.url}/v1"\n'
    with Process("--dev", settings=toml(tmp_path, table)) as process:
        answer = httpx2.post(process.url + CHAT, json={"messages": MESSAGES}, timeout=60)
        assert answer.json()["content"] == TEXT
        assert "  m: ready" in process.lines
        names: list[str] = []
        deadline = time.monotonic() + 60
        while "added" not in names and time.monotonic() < deadline:
            toml(tmp_path, table + '[models.added]\nupstream = "demo/echo"\n')  # until the watcher has begun to look
            again = time.monotonic() + 5
            while "added" not in names and time.monotonic() < again:
                time.sleep(0.05)
                with contextlib.suppress(httpx2.TransportError):
                    models = httpx2.get(f"{process.url}/v1/models", timeout=60).json().get("data", [])
                    names = [model["id"] for model in models]
        assert "added" in names
        for number in [signal.SIGINT, signal.SIGTERM] * 10:
            process.terminate(number)
        assert process.wait(60) == 0
    assert "Traceback" not in process.output


def test_dev_watches_prompts_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, settings = tmp_path / "app", tmp_path / "settings.toml"
    (folder / "prompts").mkdir(parents=True)
    for name in ("main.py", "prompts/support.md", "prompts/reply.jinja", "image.png"):
        (folder / name).touch()
    config = uvicorn.Config("app.main:app", reload=True, reload_dirs=[str(folder)])
    monkeypatch.setenv("APP_SETTINGS_FILE", str(settings))
    reload = Reload(config, print, [])
    watched = {str(path.relative_to(tmp_path)) for path in reload.iter_py_files()}
    assert watched == {"settings.toml", "app/main.py", "app/prompts/support.md", "app/prompts/reply.jinja"}


# Keys.


@pytest.fixture(scope="module")
def added() -> str:
    """What is printed as a caller is added."""
    code, lines = said_by("callers", "add", 'Team "A" 👋')
    assert code == 0
    return "\n".join(lines)


@pytest.fixture(scope="module")
def added_key(added: str) -> str:
    [key] = re.findall(r"^ +(\S+)$", added, re.MULTILINE)
    return str(key)


def test_a_new_key_is_printed_once(added: str, added_key: str) -> None:
    assert added.count(added_key) == 1
    assert len(added_key) > 40


def test_each_new_key_is_another(added_key: str) -> None:
    _, lines = said_by("callers", "add", "web")
    assert added_key not in "\n".join(lines)


def test_the_printed_table_lets_the_key_in(opened: Opened) -> None:
    assert opened.statuses == [200, 401]


# Mistakes.


@pytest.fixture
def busy_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def test_a_busy_port_is_told(busy_port: str) -> None:
    code, lines = said_by("--port", busy_port)
    assert (code, lines) == (
        1,
        [f"Settings: can't listen on 127.0.0.1:{busy_port}: the port is in use; choose another with --port"],
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_that_is_not_this_machines_is_told(host: str) -> None:
    code, lines = said_by("--host", host, "--port", "0")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"Settings: can't listen on {host}:0: ")
    assert "Unknown error" not in lines[0]


@pytest.mark.parametrize("env", [{}, {"APP_DEV": "true"}], ids=["--dev", "APP_DEV"])
def test_dev_listens_on_loopback_only(env: dict[str, str]) -> None:
    code, lines = said_by(*([] if env else ["--dev"]), "--host", "0.0.0.0", env=env)  # noqa: S104 - refused
    assert (code, lines) == (1, ["Settings: --dev listens on loopback only, not on 0.0.0.0"])


def test_an_unknown_setting_is_told() -> None:
    code, lines = said_by(env={"APP_DEFALT_MODEL": "demo"})
    assert (code, lines) == (1, ["Settings: APP_DEFALT_MODEL is not a setting; did you mean APP_DEFAULT_MODEL?"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'default_model = "demo', "is not valid TOML"),
        ('name = "Büro"'.encode("latin-1"), "is not UTF-8"),
        (b'default_model = "x"\n[models.x]\nupstream = "meta/llama"\nprotocol = "openai"', "needs api_base"),
    ],
    ids=["malformed", "not UTF-8", "a model without an address"],
)
def test_a_file_that_can_not_be_read_is_told(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    code, lines = said_by(env={"APP_SETTINGS_FILE": str(path)})
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("Settings: ")
    assert reason in lines[0]


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    code, lines = said_by(env={"APP_SETTINGS_FILE": str(tmp_path)})
    assert (code, lines) == (1, [f"Settings: APP_SETTINGS_FILE names {tmp_path}, which is no file"])


def test_an_env_file_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_bytes("APP_NAME=Büro".encode("latin-1"))
    code, lines = said_by(env={"APP_ENV_FILE": str(path)})
    assert (code, lines) == (1, [f"Settings: {path} can't be read: it is not UTF-8"])


def test_another_server_tells_a_mistake_as_well(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0"],
        cwd=PROJECT,
        env={"APP_ENV_FILE": "", "APP_SETTINGS_FILE": str(toml(tmp_path, "port = x"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "is not valid TOML" in ended.stderr
    assert "Traceback" not in ended.stderr
