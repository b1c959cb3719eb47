"""Writes the log's lines to stdout, however that is: full, closed, blocked, or replaced by a test."""

import contextlib
import os
import re
import select
import sys
import threading
import time
from datetime import UTC, datetime

from pydantic_core import to_json

UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that make a terminal show something else than what is written: controls, of direction as well."""
PIECE = 4096
"""Bytes that a pipe takes at once if it takes any (POSIX, PIPE_BUF)."""
PATIENCE = 100
"""Milliseconds that all writes wait for a reader together, within AGAIN: they hold up the event loop meanwhile."""
AGAIN = 10
"""Seconds after which writes may wait again."""


class Output:
    """A stream of lines that never raises an error and never waits for long: lines that can't be written are lost.

    That lines are lost is told on stderr, and how many were lost, in the log, when it can be written again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._lost = 0
        self._is_cut = False
        self._patience = 0.0
        self._patient_since = -float("inf")

    def write(self, text: str) -> int:
        """Write a line, or several; return the number of characters."""
        if not text.isascii():
            text = UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        with self._lock:
            try:
                # Not by a logger: one may be writing this very line, and holds a lock.
                self._write((_line("log lines were lost", lines=self._lost) if self._lost else "") + text)
                self._lost = 0
            except (OSError, ValueError) as error:
                if not self._lost:
                    _tell(type(error).__name__)
                self._lost += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: each line has been written."""

    def _write(self, text: str) -> None:
        stream = sys.stdout
        if stream is None:  # closed at the start
            return
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):  # a test reads it
            stream.write(text)
            return
        data = ("\n" * self._is_cut + text).encode("utf-8", "backslashreplace")
        while data:
            self._wait(descriptor)
            written = os.write(descriptor, data[:PIECE])
            data = data[written:]
            self._is_cut = bool(data)

    def _wait(self, descriptor: int) -> None:
        if _is_ready(descriptor, 0):
            return
        started = time.monotonic()
        if started - self._patient_since >= AGAIN:
            self._patience, self._patient_since = PATIENCE, started
        is_ready = not self._lost and self._patience >= 1 and _is_ready(descriptor, int(self._patience))
        self._patience -= (time.monotonic() - started) * 1000
        if not is_ready:
            raise TimeoutError


def _line(event: str, **fields: object) -> str:
    now = datetime.now(UTC).isoformat()
    return to_json({"event": event, **fields, "level": "error", "timestamp": now}).decode() + "\n"


def _tell(reason: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = sys.stderr.fileno()
        if _is_ready(descriptor, 0):
            os.write(descriptor, _line("log lines are lost", reason=reason).encode())


def _is_ready(descriptor: int, milliseconds: int) -> bool:
    """Wait until a descriptor takes bytes; return whether it does. Where the system can't tell, it does."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(milliseconds))


STDOUT = Output()
"""The process's own."""
