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
        buffer: the newest packet, behind what was left of those before.
        start: where in it the first byte is that was not taken yet.
    """

    __slots__ = ("_has_cr", "_scanned", "buffer", "start")

    def __init__(self) -> None:
        self.buffer = b""
        self.start = 0
        self._has_cr = False
        self._scanned = 0

    @property
    def rest(self) -> bytes:
        """The bytes that were not taken yet."""
        return self.buffer[self.start :]

    def add(self, packet: bytes) -> None:
        """Take a packet."""
        left = len(self.buffer) - self.start
        self._scanned = max(0, left - 3)
        self._has_cr = b"\r" in packet or (left > 0 and self._has_cr)
        self.buffer = self.rest + packet if left else packet
        self.start = 0

    def end(self) -> int:
        """Return where the next whole event ends; 0 if there is none. No byte is looked at for each packet again.

        Raises:
            EventTooLong: what is left is longer than MAX_EVENT_BYTES.
        """
        position = max(self.start, self._scanned)
        if self._has_cr:
            found = END_OF_EVENT.search(self.buffer, position)
            end = found.end() if found else 0
        else:  # as in most streams; this is faster
            end = self.buffer.find(b"\n\n", position) + 2
            end = end if end > 1 else 0
        if not end and len(self.buffer) - self.start > MAX_EVENT_BYTES:
            raise EventTooLong
        return end

    def take(self, end: int) -> bytes:
        """Return all up to `end`, which is the end of an event."""
        event = self.buffer[self.start : end]
        self.start = end
        return event

    def feed(self, packet: bytes) -> Iterator[bytes]:
        """Yield each event that this packet completes, with the blank line that ends it; errors as in `end`."""
        self.add(packet)
        while end := self.end():
            yield self.take(end)


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
