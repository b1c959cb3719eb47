"""`python -m app` starts or says why not, ends on every signal, and says what goes wrong in between (Linux)."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from uvicorn.config import STARTUP_FAILURE

from app.access.callers import hash_key
from app.http.serving import START_EVERY, Supervisor
from tests.serving import PROJECT, Process, environment, free_port
from tests.template.test_server_protocol import Line, problem

CANARY = "pw-canary-0123456789"
SLOW = '''
"""Holds the import of one module."""
import os, sys, time
class Held:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["HELD_MODULE"]:
            print("held", flush=True)
            time.sleep(300)
sys.meta_path.insert(0, Held())
'''
ENDING = '''
"""Ends a worker that serves: by an exit when SIGUSR1 comes, by an error when SIGUSR2 does."""
import asyncio, json, multiprocessing, os, signal, sys
if multiprocessing.parent_process() or "spawn_main" in " ".join(sys.orig_argv):
    import uvicorn
    async def main_loop(self):
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, os._exit, 3)
        loop.add_signal_handler(signal.SIGUSR2, asked.set)
        print(json.dumps({"event": "asked"}), flush=True)
        while not self.should_exit:
            if asked.is_set():
                raise RuntimeError
            await asyncio.sleep(0.05)
    uvicorn.Server.main_loop = main_loop
'''
PIPE = 8192
"""Bytes that a pipe of these tests holds."""
REQUESTS = 100
"""Their lines in the log are more than that."""
OWN = '''
"""A team's code that fails at the start."""
import contextlib, sys
from types import SimpleNamespace

@contextlib.asynccontextmanager
async def lifespan(app):
    LIFESPAN
    yield

class Middleware:
    def __init__(self, app):
        MIDDLEWARE
        self.app = app
    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)

sys.modules["app.own"] = SimpleNamespace(lifespan=lifespan, middleware=[(Middleware, (), {})])
'''
WORKERS = pytest.mark.parametrize("workers", [1, 2])


def until(holds: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def children(process: Process) -> set[int]:
    """Return the ids of the processes that serve."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return {int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def logged(process: Process, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in process.lines if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


@contextlib.contextmanager
def serving(workers: int, *args: str, **env: str) -> Iterator[Process]:
    with Process("--workers", str(workers), *args, env={"APP_LOG_FORMAT": "json"} | env) as process:
        if workers > 1:
            until(lambda: len(logged(process, "Application startup complete.")) == workers)
        yield process


def check_edge(process: Process) -> None:
    """See one sign of what test_server_protocol.py tests in detail: every way to start has that edge."""
    with Line(process.url) as line:
        line.send(b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n")
        problem(line.response(), 505)


@dataclass
class Deaths:
    """What became of a server with two workers, three of which have died, each from its own cause.

    Attributes:
        process: the server, which a SIGHUP has ended.
        lines: what the log says of each death, by the cause, with the id that the process had as `dead`.
        metrics: the status of `/metrics` while the folder of metrics was gone, and after that.
        left: folders of metrics that are left in the end.
        exit_code: the server's.
    """

    process: Process
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: list[int] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)
    exit_code: int | None = None


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> Deaths:
    """A server whose folder of metrics has vanished before the first of three workers has died."""
    folder = tmp_path_factory.mktemp("deaths")
    (folder / "sitecustomize.py").write_text(ENDING)
    callers = json.dumps({"prometheus": {"key_sha256": hash_key("k"), "metrics": True}})
    with serving(2, PYTHONPATH=str(folder), TMPDIR=str(folder), APP_CALLERS=callers) as process:
        deaths = Deaths(process)

        def ask_for_metrics() -> None:
            answer = httpx2.get(f"{process.url}/metrics", headers={"Authorization": "Bearer k"})
            deaths.metrics.append(answer.status_code)

        until(lambda: len(logged(process, "asked")) >= 2)
        [metrics] = folder.glob("metrics-*")
        for file in metrics.iterdir():
            file.unlink()
        metrics.rmdir()
        ask_for_metrics()
        until(lambda: logged(process, "unexpected"))
        time.sleep(START_EVERY)  # a younger worker is not replaced at once; until then it was seen that both serve
        for number, cause in ((signal.SIGKILL, "SIGKILL"), (signal.SIGUSR1, "exit"), (signal.SIGUSR2, "error")):
            dead = min(children(process))
            os.kill(dead, number)
            until(lambda: len(logged(process, "a worker has died")) == len(deaths.lines) + 1)
            deaths.lines[cause] = logged(process, "a worker has died")[-1] | {"dead": dead}
            until(lambda: len(logged(process, "asked")) >= len(deaths.lines) + 2)
        ask_for_metrics()
        process.terminate(signal.SIGHUP)
        deaths.exit_code = process.wait(60)
        deaths.left = list(folder.glob("metrics-*"))
    return deaths


# Ends.


@pytest.mark.parametrize(
    ("workers", "module", "number"),
    [
        (1, "pydantic", signal.SIGTERM),
        (1, "uvicorn", signal.SIGINT),
        (1, "fastapi", signal.SIGTERM),
        (2, "fastapi", signal.SIGTERM),
        (2, "fastapi", signal.SIGINT),
    ],
)
def test_a_signal_ends_a_start_at_any_moment(tmp_path: Path, module: str, number: signal.Signals, workers: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    env = {"PYTHONPATH": str(tmp_path), "HELD_MODULE": module}
    with Process("--workers", str(workers), env=env, ready=False) as process:
        until(lambda: "held" in process.lines)
        handled = int(Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0], 16)
        assert handled & 1 << (signal.SIGTERM - 1), "the first process of a container gets no signal without a handler"
        process.terminate(number)
        assert process.wait(60) == 0
        assert "Traceback" not in process.output


def test_sighup_ends_a_worker_as_sigterm_does_and_a_name_is_served_at_all_of_its_addresses() -> None:
    with serving(1, "--host", "localhost") as process:
        assert httpx2.get(f"{process.url}/health").status_code == 200
        process.terminate(signal.SIGHUP)
        assert process.wait(60) == 0
        assert logged(process, "Application shutdown complete.")


def test_sighup_ends_workers_as_sigterm_does(deaths: Deaths) -> None:
    assert deaths.exit_code == 0
    assert logged(deaths.process, "Application shutdown complete.")


def test_dev_ends_on_sighup_and_its_log_is_json_too() -> None:
    with Process("--dev", env={"APP_LOG_FORMAT": "json"}) as process:
        check_edge(process)
        process.terminate(signal.SIGHUP)
        assert process.wait(60) == 0
    assert [line for line in process.lines if not line.startswith("{")] == []


def test_under_nohup_sighup_ends_nothing() -> None:
    with contextlib.ExitStack() as stack:
        previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which a child inherits
        stack.callback(signal.signal, signal.SIGHUP, previous)
        process = stack.enter_context(Process())
        process.terminate(signal.SIGHUP)
        assert httpx2.get(f"{process.url}/health").status_code == 200
        process.terminate()
        assert process.wait(60) == 0


@WORKERS
def test_every_address_is_served_in_both_families_until_sigint_though_a_shell_in_the_background_ignores_it(
    workers: int,
) -> None:
    """A shell ignores SIGINT in the children that it starts in the background."""
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with serving(workers, "--host", "::", APP_TRUSTED_PROXIES="127.0.0.0/8") as process:
            for host in ("127.0.0.1", "[::1]"):
                assert httpx2.get(f"http://{host}:{process.port}/health").status_code == 200
            check_edge(process)
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(60) == 0
    finally:
        signal.signal(signal.SIGINT, ignored)


@pytest.mark.parametrize("args", [("--workers", "2"), ("--dev",)], ids=["workers", "--dev"])
def test_workers_end_when_their_supervisor_is_killed(args: tuple[str, ...]) -> None:
    with Process(*args) as process:
        until(lambda: len(children(process)) >= (1 if args == ("--dev",) else 2))
        orphans = children(process)
        process.terminate(signal.SIGKILL)
        until(lambda: not any(map(is_there, orphans)))


@pytest.mark.parametrize(
    ("cause", "told"), [("SIGKILL", {"signal": "SIGKILL"}), ("exit", {"exit_code": 3}), ("error", {"exit_code": 1})]
)
def test_a_workers_death_is_one_line_and_another_takes_its_place(
    deaths: Deaths, cause: str, told: dict[str, object]
) -> None:
    line = deaths.lines[cause]
    assert line.items() >= {"level": "error", "pid": line["dead"], **told}.items()
    assert all(line.startswith("{") for line in deaths.process.lines)


class Ended:
    """A worker that has ended."""

    pid = 1
    exitcode = 1

    def __init__(self, *, has_served: bool, age: float) -> None:
        self.has_served = has_served
        self.started_at = time.monotonic() - age
        self.kill = self.join = lambda: None


@pytest.mark.parametrize(
    ("code", "has_served", "age", "gives_up", "starts"),
    [
        (1, True, 100, False, 1),
        (1, False, 100, False, 1),
        (STARTUP_FAILURE, True, 100, False, 1),
        (STARTUP_FAILURE, False, 100, True, 0),
        (STARTUP_FAILURE, False, 0, True, 0),
        (1, True, 0, False, 0),
        (-9, False, 0, False, 0),
        (-9, False, 100, False, 1),
    ],
)
def test_a_worker_is_replaced_unless_it_could_not_start_but_not_again_and_again_at_once(
    monkeypatch: pytest.MonkeyPatch, code: int, has_served: bool, age: float, gives_up: bool, starts: int
) -> None:
    supervisor = object.__new__(Supervisor)
    supervisor.should_exit = threading.Event()
    supervisor._has_served = True
    worker: Any = Ended(has_served=has_served, age=age)
    worker.exitcode = code
    supervisor.processes = [worker, worker]
    started: list[object] = []

    def start() -> Any:
        started.append(worker)
        return worker

    monkeypatch.setattr(supervisor, "_start", start)
    supervisor._replace(0)
    assert (supervisor.should_exit.is_set(), len(started)) == (gives_up, starts)


@pytest.mark.parametrize("code", [1, STARTUP_FAILURE])
def test_the_first_worker_of_all_is_not_started_again(code: int) -> None:
    supervisor = object.__new__(Supervisor)
    supervisor.should_exit = threading.Event()
    supervisor._has_served = False
    worker: Any = Ended(has_served=False, age=100)
    worker.exitcode = code
    supervisor.processes = [worker]
    supervisor._replace(0)
    assert supervisor.should_exit.is_set()


# Starts that can't work.


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (("--workers", "2"), {"APP_LIMIT_STORAGE": f"async+valkey://:{CANARY}@host:port"}),
        (("--dev",), {"APP_TELEMETRY": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": f"me:{CANARY}@collector"}),
    ],
    ids=["storage", "exporter"],
)
def test_a_start_that_can_not_work_is_one_sentence_and_exit_code_1(args: tuple[str, ...], env: dict[str, str]) -> None:
    with Process(*args, env={"APP_LOG_FORMAT": "json"} | env, ready=False) as process:
        assert process.wait(60) == 1
    [line] = process.lines
    assert line.startswith("Settings: ")
    assert CANARY not in line


@pytest.mark.parametrize(
    ("workers", "lifespan", "middleware", "fields"),
    [
        (1, "from app.config import SettingsError; raise SettingsError('No shop.')", "pass", {"No shop."}),
        (2, "app.llm_for('nobody')", "pass", {"SettingsError"}),
        (1, f"raise OSError('{CANARY[::-1]}'[::-1])", "pass", {"OSError"}),
        (1, "pass", "raise OSError", {"OSError"}),
    ],
    ids=["settings", "caller", "resource", "middleware"],
)
def test_a_start_that_fails_in_own_code_is_told_once_and_in_our_words_alone(
    tmp_path: Path, workers: int, lifespan: str, middleware: str, fields: set[str]
) -> None:
    own = OWN.replace("LIFESPAN", lifespan).replace("MIDDLEWARE", middleware)
    (tmp_path / "sitecustomize.py").write_text(own)
    env = {"PYTHONPATH": str(tmp_path), "APP_LOG_FORMAT": "json"}
    with Process("--workers", str(workers), env=env, ready=False) as process:
        assert process.wait(60) == 1
    lines = [json.loads(line) for line in process.lines]
    [line] = [line for line in lines if line.get("error")]
    assert fields <= set(line.values())
    assert not any(CANARY in line or "Traceback" in line for line in process.lines)


def test_uvicorns_own_supervisor_gives_up_as_well() -> None:
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(free_port()), "--workers", "2"],
        cwd=PROJECT,
        env=environment(APP_LIMIT_STORAGE=f"async+valkey://:{CANARY}@host:port"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Settings: setting limit_storage" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert CANARY not in ended.stderr


# What fails while it runs.


def serve_into(stdout: Any, requests: int) -> tuple[int, str]:
    """Serve with another stdout; return the exit code and what came on stderr."""
    port = free_port()
    env = environment(APP_PORT=str(port), APP_LOG_FORMAT="json")
    with subprocess.Popen(
        [sys.executable, "-m", "app"], cwd=PROJECT, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                until(lambda: health(client) == 200, 60)
                assert [health(client) for _ in range(requests)] == [200] * requests
        finally:
            process.terminate()
            _, said = process.communicate(timeout=30)
    return process.returncode, said


def health(client: httpx2.Client) -> int:
    with contextlib.suppress(httpx2.ConnectError):
        return client.get("/health").status_code
    return 0


@pytest.mark.parametrize("reason", ["a full disk", "a closed pipe", "a blocked pipe"])
def test_a_log_that_can_not_be_written_is_told_and_stops_nothing(reason: str) -> None:
    reader, writer = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, writer)
        if reason == "a closed pipe":
            os.close(reader)
        else:
            stack.callback(os.close, reader)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
        stdout = stack.enter_context(open("/dev/full", "wb")) if reason == "a full disk" else writer  # noqa: PTH123
        code, said = serve_into(stdout, REQUESTS)
    assert code == 0
    [line] = said.splitlines()
    assert json.loads(line)["event"] == "log lines are lost"


def test_lines_that_were_lost_are_counted_in_the_log() -> None:
    port = free_port()
    env = environment(APP_PORT=str(port), APP_LOG_FORMAT="json")
    with subprocess.Popen(
        [sys.executable, "-m", "app"],
        cwd=PROJECT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            until(lambda: health(client) == 200, 60)
            assert [health(client) for _ in range(REQUESTS)] == [200] * REQUESTS
        process.terminate()
        lines = [json.loads(line) for line in process.stdout]
    [line] = [line for line in lines if line["event"] == "log lines were lost"]
    assert 0 < line["lines"] < REQUESTS
    written = [line for line in lines if line["event"] == "request"]
    assert len(written) + line["lines"] > REQUESTS


def test_a_folder_of_metrics_that_vanished_is_told_and_made_again(deaths: Deaths) -> None:
    assert logged(deaths.process, "the folder of metrics was gone and is made again")
    assert deaths.metrics == [500, 200]
    assert deaths.left == []
