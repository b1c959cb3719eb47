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


class Readiness:
    """Tells whether a descriptor takes bytes. Where the system can't tell, it does.

    Args:
        descriptor: the file's; for a negative one, the system is not asked.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._poll = select.poll() if hasattr(select, "poll") and descriptor >= 0 else None
        if self._poll:
            self._poll.register(descriptor, select.POLLOUT)

    def within(self, milliseconds: int) -> bool:
        """Wait at most so long until bytes are taken; return whether they are."""
        return self._poll is None or bool(self._poll.poll(milliseconds))


class Output:
    """A stream of lines that never raises an error and never waits for long: lines that can't be written are lost.

    That lines are lost is told on stderr, and how many were lost, in the log, when it can be written again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._lost = 0
        self._is_cut = False
        self._readiness = Readiness(-1)
        self._patience = 0.0
        self._patient_since = -float("inf")

    def write(self, text: str) -> int:
        """Write a line, or several; return the number of characters."""
        if not text.isascii():
            text = UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        with self._lock:
            # Not by a logger: one may be writing this very line, and holds a lock.
            told = _line("log lines were lost", lines=self._lost) if self._lost else ""
            lines = text.encode("utf-8", "backslashreplace")
            data = b"\n" * self._is_cut + told.encode() + lines
            try:
                while data:
                    data = self._write(data)
                    if len(data) <= len(lines):
                        self._lost = 0  # they have been told
            except (OSError, ValueError) as error:
                if not self._lost:
                    _tell(type(error).__name__)
                self._lost += min(data.count(b"\n"), text.count("\n"))
        return len(text)

    def flush(self) -> None:
        """Do nothing: each line has been written."""

    def _write(self, data: bytes) -> bytes:
        """Write whole lines if a pipe takes them at once, since other processes may write too; return the rest."""
        stream = sys.stdout
        if stream is None:  # closed at the start
            return b""
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):  # a test reads it
            stream.write(data.decode())
            return b""
        if self._readiness.descriptor != descriptor:
            self._readiness = Readiness(descriptor)
        self._wait()
        piece = data[: data.rfind(b"\n", 0, PIECE) + 1 or PIECE]
        written = os.write(descriptor, piece)
        self._is_cut = not piece[:written].endswith(b"\n")
        return data[written:]

    def _wait(self) -> None:
        if self._readiness.within(0):
            return
        started = time.monotonic()
        if started - self._patient_since >= AGAIN:
            self._patience, self._patient_since = PATIENCE, started
        is_ready = not self._lost and self._patience >= 1 and self._readiness.within(int(self._patience))
        self._patience -= (time.monotonic() - started) * 1000
        if not is_ready:
            raise TimeoutError


def _line(event: str, **fields: object) -> str:
    now = datetime.now(UTC).isoformat()
    return to_json({"event": event, **fields, "level": "error", "timestamp": now}).decode() + "\n"


def _tell(reason: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = sys.stderr.fileno()
        if Readiness(descriptor).within(0):
            os.write(descriptor, _line("log lines are lost", reason=reason).encode())


STDOUT = Output()
"""The process's own."""
