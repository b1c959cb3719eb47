"""Instructions that a server executes, where the kernel and the machine count them; few virtual machines do."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

EVENT = "instructions"


def command(*arguments: str, event: str = EVENT) -> list[str]:
    return ["perf", "stat", "-x,", "-e", event, *arguments]


@cache
def counted() -> bool:
    """Whether `perf stat` counts them here."""
    if not shutil.which("perf"):
        return False
    tried = subprocess.run(command("true"), capture_output=True, text=True, check=False)
    return tried.returncode == 0 and number(tried.stderr) is not None


def number(output: str) -> float | None:
    """What `perf stat -x,` counted; None where it says `<not supported>` or `<not counted>`."""
    for line in output.splitlines():
        value, _, rest = line.partition(",")
        if rest and not line.startswith("#"):
            return float(value) if value.replace(".", "", 1).isdigit() else None
    return None


@contextmanager
def count(pids: Sequence[int], event: str = EVENT) -> Iterator[list[float]]:
    """Count what these processes, with all their threads, do meanwhile. The list has the number after the end."""
    found: list[float] = []
    if event == EVENT and not counted():
        yield found
        return
    perf = subprocess.Popen(
        command("-p", ",".join(map(str, pids)), event=event),
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    time.sleep(0.1)  # until it has attached itself, which it does not report
    try:
        yield found
    finally:
        perf.send_signal(signal.SIGINT)
        _, output = perf.communicate(timeout=10)
        if (value := number(output)) is not None:
            found.append(value)
