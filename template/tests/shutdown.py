"""A server that is told to end while it has work of every kind, and what is seen of it from then on."""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.serving import WITHOUT_OWN, Process
from tests.stub import Behaviour, Stub
from tests.wire import Call, text_of

GRACE = 5
"""Seconds, as `shutdown_grace` is set here: what ends by itself must end within it on a busy machine too."""
OVERDUE = 90
"""Seconds, generous, past the grace after which nothing is left."""
STREAMS = 20


class Uvicorn(Process):
    """`uvicorn app.main:app`, as some platforms run it."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(self.port)]


@dataclass(frozen=True)
class Scene:
    """How the server runs, and how it is told to end.

    Attributes:
        number: the signal.
        command: what runs it.
        workers: how many processes.
        everyone: every process gets the signal, as by Ctrl-C in a terminal.
        stalled: one more client has stopped reading its stream.
    """

    number: signal.Signals
    command: type[Process] = Process
    workers: int = 1
    everyone: bool = False
    stalled: bool = False


SCENES = {
    "SIGTERM": Scene(signal.SIGTERM, stalled=True),
    "SIGINT": Scene(signal.SIGINT),
    "SIGTERM, two workers": Scene(signal.SIGTERM, workers=2),
    "Ctrl-C, two workers": Scene(signal.SIGINT, workers=2, everyone=True),
    "uvicorn": Scene(signal.SIGTERM, command=Uvicorn, stalled=True),
}


@dataclass
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: Any


@dataclass
class Ending:
    """What was seen from the signal on.

    Attributes:
        refused: the answer to new work.
        health: the answer of `/health` after that.
        ready: the answer of `/ready` after that.
        cut: the answer, not streamed, that took longer than the grace.
        short: texts of the streams that ended within the grace.
        endless: error codes and last events of the streams that didn't.
        last: seconds from the signal to the end of the last call to the provider.
        exited: seconds from the signal to the exit of the process.
        code: its exit code.
    """

    refused: Response
    health: Response
    ready: Response
    cut: Response
    short: Counter[str] = field(default_factory=Counter)
    endless: Counter[tuple[str, str]] = field(default_factory=Counter)
    last: float = 0
    exited: float = 0
    code: int | None = None


def play(scene: Scene, key: str) -> Ending:
    with Stub() as stub:
        env = {
            "APP_MODELS": json.dumps({"gpt-4o": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}}),
            "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}}),
            "APP_WORKERS": str(scene.workers),
            "APP_SHUTDOWN_GRACE": str(GRACE),
        }
        with scene.command(env=env | WITHOUT_OWN) as process:
            return end(scene, process, stub, key)


def end(scene: Scene, process: Process, stub: Stub, key: str) -> Ending:
    def call(behaviour: Behaviour, **fields: Any) -> Call:
        before = len(stub.requests)
        stub.queue(behaviour)
        call = Call(process.url, key, **fields)
        assert stub.wait_until(lambda: len(stub.requests) > before)
        return call

    short = [call(Behaviour(repeat=2, pace=0.05), stream=True) for _ in range(STREAMS // 2)]
    endless = [call(Behaviour(repeat=10_000, pace=0.3), stream=True) for _ in range(STREAMS // 2)]
    waiting = call(Behaviour(delay_headers=60))
    big = Behaviour(text="x" * 10_000, repeat=10_000)
    stalled = [call(big, stream=True, window=20_000) for _ in range(scene.stalled)]
    for stream in (*short, *endless, *stalled):
        assert stream.status == 200

    started_at = time.monotonic()
    for pid in [process.pid, *(children(process.pid) if scene.everyone else [])]:
        os.kill(pid, scene.number)
    while (refused := Call(process.url, key)).status == 200:
        refused.leave()
    health, ready = get(process.url, "/health"), get(process.url, "/ready")
    ending = Ending(Response(refused.status, refused.headers, refused.json), health, ready, ready)
    for stream in short:
        ending.short[text_of(list(stream.events))] += 1
    for stream in endless:
        *_, error, done = stream.events
        ending.endless[json.loads(error.removeprefix("data: "))["error"]["code"], done] += 1
    ending.cut = Response(waiting.status, waiting.headers, waiting.json)
    ending.code = process.wait(60)
    ending.exited = time.monotonic() - started_at
    assert stub.wait_until(lambda: stub.in_flight == 0)
    ending.last = max(request.closed_at or 0 for request in stub.requests) - started_at
    for one in (*short, *endless, *stalled, waiting, refused):
        one.leave()
    return ending


def get(url: str, path: str) -> Response:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    return Response(response.status, response.headers, body)


def children(pid: int) -> list[int]:
    """Return a process's own processes (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            parent = path.read_text().rpartition(")")[2].split()[1]
            found += [int(path.parent.name)] * (int(parent) == pid)
    return found
