"""StreamState: what a stream has said so far, for accounting and for the check that it is complete."""

from typing import Any

from pydantic_core import to_json

LONGEST_FRAME = 512
"""Bytes of an event that are taken for no text at the most."""


class StreamState:
    """What one stream has said so far.

    Args:
        choices: how many the request asked for (`n`).
        wants_usage: whether the client asked for the usage chunk.

    Attributes:
        chunks: how many chunks with a choice have come.
        usage: the provider's usage, once it has come.
        size: bytes of their events.
        frame: bytes of an event that has hardly any text.
        finish_reasons: why each choice ended, by its index.
        model: the provider's name of the model.
    """

    __slots__ = ("_wants_usage", "choices", "chunks", "finish_reasons", "frame", "model", "size", "usage")

    def __init__(self, choices: int = 1, *, wants_usage: bool = False) -> None:
        self.choices = choices
        self._wants_usage = wants_usage
        self.chunks = self.size = 0
        self.frame = LONGEST_FRAME
        self.usage: dict[str, Any] | None = None
        self.finish_reasons: dict[int, str] = {}
        self.model: str | None = None

    def see(self, chunk: dict[str, Any], size: int = 0) -> bool:
        """Record what a chunk says; return whether it is passed on to the client.

        Args:
            chunk: the chunk.
            size: bytes of its event.

        Raises:
            AttributeError, TypeError: it is no chunk of OpenAI's protocol.
        """
        usage = chunk.get("usage")
        if usage:
            self.usage = usage
        choices = chunk["choices"]
        if not choices:
            return not usage or self._wants_usage
        self.chunks += 1
        self.size += size
        self.frame = min(self.frame, size)
        self.model = chunk.get("model")
        for choice in choices:
            if choice.get("finish_reason"):
                self.finish_reasons[choice.get("index") or 0] = str(choice["finish_reason"])
        return True

    def event(self, chunk: dict[str, Any]) -> bytes:
        """Record a chunk that did not come as an event; return its event, or nothing if it is not passed on."""
        event = b"data: " + to_json(chunk) + b"\n\n"
        return event if self.see(chunk, len(event)) else b""

    @property
    def seen(self) -> int:
        """About how many tokens have come: one for each chunk, or a quarter of the bytes that are text."""
        return max(self.chunks, (self.size - self.chunks * self.frame) // 4)

    @property
    def finished(self) -> bool:
        """Whether every choice has given its finish reason."""
        return len(self.finish_reasons) >= self.choices

    @property
    def lost_a_choice(self) -> bool:
        """Whether a choice has no finish reason, although another has one, or several were asked for."""
        return (bool(self.finish_reasons) or self.choices > 1) and not self.finished
