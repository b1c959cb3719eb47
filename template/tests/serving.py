"""Real servers on loopback ports: uvicorn in a thread, and `python -m app` in a process."""

import asyncio
import contextlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import openai
import uvicorn

from app.http.server_protocol import ServerProtocol
from tests.stub import Stub

PROJECT = Path(__file__).parent.parent
WITHOUT_OWN = {"PYTHONPATH": str(Path(__file__).with_name("without_own"))}
"""Variables of a process in which app/own.py is empty: the tests that came with the template run in that way."""
START_SECONDS = 600
"""What a start may take on a very busy machine; LiteLLM alone takes ten seconds of CPU time."""


class Server(uvicorn.Server):
    """uvicorn's, but it ends at once: uvicorn itself pauses for tenths of a second, as a process may."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = Future[None]()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await asyncio.wrap_future(self.ended)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        deadline = time.monotonic() + 1
        while self.server_state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.002)
        for task in self.server_state.tasks:
            task.cancel()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)
        await self.lifespan.shutdown()


@contextlib.contextmanager
def serve(app: Any) -> Iterator[str]:
    """Serve an ASGI app by a real uvicorn in a thread; yield its base URL.

    uvicorn takes our protocol, and uvloop where the platform has it. Connections that are still open at the end get one
    second.

    Raises:
        RuntimeError: the app didn't start; the log tells why.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=ServerProtocol, lifespan="on", ws="none", access_log=False, log_config=None)
        server = Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("the app didn't start")
                time.sleep(0.002)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.ended.set_result(None)
            thread.join()


def free_port() -> int:
    """Return a loopback port that nobody listens on, and that the system gives to no outgoing connection meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def environment(**given: str) -> dict[str, str]:
    """Return the variables of a process that a test starts: the tests' own, which are cleaned, and others.

    Args:
        **given: the others. To `PYTHONPATH`, they add folders.
    """
    folders = [os.environ.get("PYTHONPATH"), given.get("PYTHONPATH")]
    return os.environ | given | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


class Process:
    """`python -m app` in a process of its own, from the project's folder; a context manager.

    Args:
        args: arguments of the command.
        settings: a settings file that replaces `app/settings.toml`.
        env: variables on top of this process's own, which the tests have cleaned.
        ready: wait at the start until `/health` answers. False for a command that ends by itself.

    Attributes:
        port: the port that it is told to listen on.
        url: its base URL.
        lines: what it has printed so far, both streams together.
    """

    def __init__(
        self,
        *args: str,
        settings: Path | None = None,
        env: Mapping[str, str] | None = None,
        ready: bool = True,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lines: list[str] = []
        self._command = [sys.executable, "-m", "app", *args]
        self._env = environment(**{"APP_PORT": str(self.port), "PYTHONUNBUFFERED": "1"} | dict(env or {}))
        if settings is not None:
            self._env["APP_SETTINGS_FILE"] = str(settings)
        self._ready = ready

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            self._command, cwd=PROJECT, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if self._ready:
            try:
                self._wait_for("/health")
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        return "\n".join(self.lines)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Wait for its end and for all of its output; return its exit code.

        Raises:
            subprocess.TimeoutExpired: it is still running after so many seconds.
        """
        code = self._process.wait(seconds)
        self._reader.join()
        return code

    def wait_until_ready(self) -> None:
        """Wait until `/ready` answers 200, so until LiteLLM is loaded where it is needed.

        Raises:
            RuntimeError: it ended, or took too long; with what it printed.
        """
        self._wait_for("/ready")

    @property
    def rss(self) -> int:
        """Resident memory, in bytes (Linux)."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def loop_seconds(self) -> float:
        """CPU time of its event loop's thread, in seconds (Linux)."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    @property
    def fds(self) -> int:
        """How many file descriptors are open (Linux)."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def _wait_for(self, path: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"exit code {self.wait()}:\n{self.output}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
            with contextlib.closing(connection), contextlib.suppress(ConnectionError):
                connection.request("GET", path)
                if connection.getresponse().status == http.client.OK:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"{path} was not answered within {START_SECONDS} s:\n{self.output}")


@dataclass(frozen=True)
class Backend:
    """A running app with its provider and a client.

    Attributes:
        process: the app.
        stub: the provider of all of its models.
        client: OpenAI's own, with a key and without retries.
        upstreams: what the stub is asked for, by the model's public name.
    """

    process: Process
    stub: Stub
    client: openai.OpenAI
    upstreams: dict[str, str]
