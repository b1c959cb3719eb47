"""PlainChunks: tells which events of a stream need no parsing."""

import re
from collections.abc import Callable
from typing import Any

BEFORE_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|arguments|obfuscation|p)": ?"')
"""What stands before a text that is new in each chunk. The last two of these fields hide how long the others are."""
TEXT = re.compile(rb'[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*')
"""A string of JSON, without its quotes."""
NUMBER = re.compile(rb"(?:0|[1-9][0-9]{0,17})(?![0-9])")
"""A whole number that no count exceeds: Python refuses to read one of more than 4,300 digits."""


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

    def at(self, packet: bytes, start: int) -> tuple[int, int]:
        """Return where the events at `start` of a packet end that are like the one remembered, and how many these are.

        Where there are none, that is `start`.
        """
        end, count, last, size = start, 0, self._last, len(packet)
        while last and end < size:
            at = end
            for piece, match in self._pieces:
                text = packet.startswith(piece, at) and match(packet, at + len(piece))
                if not text:
                    break
                at = text.end()
            else:
                if packet.startswith(last, at):
                    end = at + len(last)
                    count += 1
                    continue
            break
        if count and not packet.isascii():
            try:
                packet[start:end].decode()
            except UnicodeDecodeError as error:
                return self.at(packet[: start + error.start], start)  # those before it; it is looked for only once
        return end, count
