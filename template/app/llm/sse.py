"""Server-sent events: where an event ends, and what data it has.

Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream".
"""

import re
from collections.abc import Iterator

DONE = b"data: [DONE]\n\n"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""May stand before the first event, and belongs to none."""
ENCODINGS = frozenset({"", "br", "deflate", "gzip", "identity", "zstd"})
"""Values of Content-Encoding whose streams are decoded before they are read here."""
MAX_EVENT_BYTES = 32 * 1024 * 1024

END_OF_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
END_OF_LINE = re.compile(rb"\r\n|\n|\r")


class EventTooLong(ValueError):
    """An event is longer than MAX_EVENT_BYTES."""


class Events:
    """Cuts packets into whole events. No byte is changed, and none is lost.

    Attributes:
        rest: the bytes that have arrived since the last whole event.
    """

    __slots__ = ("_scanned", "rest")

    def __init__(self) -> None:
        self.rest = b""
        self._scanned = 0

    def feed(self, packet: bytes) -> Iterator[bytes]:
        """Yield each event that this packet completes, with the blank line that ends it.

        Raises:
            EventTooLong: an event is longer than MAX_EVENT_BYTES.
        """
        buffer = self.rest + packet if self.rest else packet
        start = 0
        for end in _ends(buffer, self._scanned):
            yield buffer[start:end]
            start = end
        self.rest = buffer[start:]
        self._scanned = max(0, len(self.rest) - 3)
        if len(self.rest) > MAX_EVENT_BYTES:
            raise EventTooLong


def _ends(buffer: bytes, position: int) -> Iterator[int]:
    """Yield where each event ends. Most streams have no CR; to look for line feeds alone is many times as fast."""
    if b"\r" in buffer:
        yield from (end.end() for end in END_OF_EVENT.finditer(buffer, position))
    else:
        while (found := buffer.find(b"\n\n", position)) >= 0:
            yield (position := found + 2)


def event_name(event: bytes) -> bytes:
    """Return an event's name, from its `event:` line; empty if it has none."""
    lines = [line for line in END_OF_LINE.split(event) if line.startswith(b"event:")]
    return lines[-1][6:].removeprefix(b" ") if lines else b""


def event_data(event: bytes) -> bytes | None:
    """Return an event's data, its lines joined; None if it has no data, as a comment has none."""
    line = event[event.find(b"\n") + 1 :] if event.startswith(b"event:") else event
    if line.startswith(b"data: ") and line.find(b"\n") == len(line) - 2 and b"\r" not in event:
        return line[6:-2]
    lines = [line for line in END_OF_LINE.split(event) if line.startswith(b"data")]
    values = [line[5:].removeprefix(b" ") for line in lines if line[4:5] in (b":", b"")]
    return b"\n".join(values) if values else None
