"""Servers as processes: started on a core of their own, watched through the kernel, ended as a group."""

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

LOAD_CORE = 0
SERVER_CORE = 1


@contextmanager
def pinned(*cores: int) -> Iterator[None]:
    """Run on these cores. Processes started meanwhile stay there, with all that they start themselves."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """A program, and every process that it starts, on one core or several."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *cores: int, log: Path, folder: Path | None = None
    ) -> None:
        self.log = log
        inherited = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}
        with pinned(*cores), log.open("wb") as output:
            self.started = time.perf_counter()
            self.popen = subprocess.Popen(
                command,
                cwd=folder,
                env=inherited | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """Ids of the process and all its descendants."""
        found = [self.popen.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(FileNotFoundError):  # the thread has ended meanwhile
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def cpu_seconds(self) -> float:
        """CPU time, user and system, that the living processes of the tree have used.

        The same time as utime + stime in /proc/<pid>/stat, but that counts in ticks of 10 ms. The kernel's CPU clock
        of a process counts nanoseconds; its id is made as clock_getcpuclockid(3) makes it.
        """
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids())

    def sleeps(self) -> int:
        """How often the threads of the living processes had nothing to do and went to sleep."""
        statuses = (path for pid in self.pids() for path in Path(f"/proc/{pid}/task").glob("*/status"))
        return sum(field(path, "voluntary_ctxt_switches") for path in statuses)

    def rss_mb(self) -> float:
        return sum(field(Path(f"/proc/{pid}/status"), "VmRSS") for pid in self.pids()) / 1024

    def peak_rss_mb(self) -> float:
        return sum(field(Path(f"/proc/{pid}/status"), "VmHWM") for pid in self.pids()) / 1024

    def raise_if_ended(self) -> None:
        code = self.popen.poll()
        if code is not None:
            raise RuntimeError(f"{self.popen.args!r} ended with {code}:\n{self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGTERM)
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def field(status: Path, name: str) -> int:
    """A number of /proc/<pid>/status; memory is in kB. 0 if the thread has ended meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in status.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    return 0


def ended_children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
