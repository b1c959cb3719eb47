"""PlainChunks: tells which events of a stream need no parsing."""

import re
from collections.abc import Callable
from typing import Any

BEFORE_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|arguments|obfuscation|p)": ?"')
"""What stands before a text that is new in each chunk. The last two of these fields hide how long the others are."""
TEXT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments|delta|text|thinking|partial_json|obfuscation|p'
    rb'|sequence_number)": ?(?:"|(?=[0-9]))'
)
"""What stands before a text that is new in each chunk, or a number. `obfuscation` and `p` hide how long texts are."""
TEXT = re.compile(rb'[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*')
"""A string of JSON, without its quotes."""
NUMBER = re.compile(rb"0(?![0-9])|[1-9][0-9]*")


class PlainChunks:
    """Recognizes the events that differ from a plain chunk's, which was parsed, in their texts and numbers alone.

    A plain chunk only adds to the answer: it has choices, and no finish_reason, usage or error. Whatever JSON string
    stands in place of another one, the chunk is still valid and still plain.
    """

    __slots__ = ("_last", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[tuple[bytes, Callable[[bytes, int], re.Match[bytes] | None]]] = []
        self._last = b""  # so no event is like it until a plain chunk has come

    def learn(self, event: bytes, chunk: dict[str, Any]) -> bool:
        """Remember an event if its chunk is plain; return whether it is.

        Args:
            event: one line with data, and a blank one.
            chunk: the data, parsed; without an error.
        """
        choices = chunk["choices"]
        if not choices or chunk.get("usage") or any(choice.get("finish_reason") for choice in choices):
            return False
        self.remember(event, BEFORE_TEXT)
        return True

    def remember(self, event: bytes, before: re.Pattern[bytes]) -> None:
        """Remember an event that only adds to the answer, cut where its texts are taken out.

        Args:
            event: as in `learn`; lines before the data are the same in all.
            before: what stands before a text, with its quotation mark; or before a whole number.
        """
        self._pieces, start = [], 0
        for name in before.finditer(event):
            match = TEXT.match if name[0].endswith(b'"') else NUMBER.match
            if text := match(event, name.end()):
                self._pieces.append((event[start : name.end()], match))
                start = text.end()
        self._last = event[start:]

    def at_start(self, packet: bytes) -> tuple[int, int]:
        """Return how many bytes at the start of a packet are such events, and how many events these are."""
        end = count = 0
        while end < len(packet) and (after := self._end(packet, end)):
            end = after
            count += 1
        if not packet.isascii():
            try:
                packet[:end].decode()
            except UnicodeDecodeError:
                return 0, 0
        return end, count

    def _end(self, packet: bytes, start: int) -> int:
        """Return where the event that begins at `start` ends, or 0 if it is another kind of event."""
        for piece, match in self._pieces:
            text = packet.startswith(piece, start) and match(packet, start + len(piece))
            if not text:
                return 0
            start = text.end()
        return start + len(self._last) if packet.startswith(self._last, start) else 0
