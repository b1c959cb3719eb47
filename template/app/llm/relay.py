"""Passes an upstream's stream on, event for event, and finds out whether it is whole."""

from typing import Annotated, Any

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder
from pydantic_core import from_json

from app.errors import ProviderError
from app.llm.failures import cut_off, failure_in_body, unreadable
from app.llm.sse import DONE, Events, EventTooLong, event_data


class PlainChoice(Struct, gc=False):
    """A choice that goes on."""

    finish_reason: None = None


class PlainChunk(Struct, gc=False):
    """A chunk that tells nothing to take note of: no end, no usage, no error. What else it has is passed over."""

    choices: Annotated[list[PlainChoice], Meta(min_length=1)]
    model: str | None = None
    usage: None = None
    error: None = None


read_plain = Decoder(PlainChunk).decode_lines
"""Dicts of all that a chunk has would cost four times as much."""


class StreamState:
    """What one stream has said so far.

    Args:
        choices: how many the request asked for (`n`).
        wants_usage: whether the client asked for the usage chunk.
    """

    __slots__ = ("_wants_usage", "choices", "chunks", "finish_reasons", "model", "usage")

    def __init__(self, choices: int = 1, *, wants_usage: bool = False) -> None:
        self.choices = choices
        self._wants_usage = wants_usage
        self.chunks = 0
        self.usage: dict[str, Any] | None = None
        self.finish_reasons: dict[int, str] = {}
        self.model: str | None = None

    def see(self, chunk: dict[str, Any]) -> bool:
        """Take note of a chunk; return whether the client is to get it."""
        usage = chunk.get("usage")
        if usage:
            self.usage = usage
        choices = chunk["choices"]
        if not choices:
            return not usage or self._wants_usage
        self.chunks += 1
        self.model = chunk.get("model")
        for choice in choices:
            if choice.get("finish_reason"):
                self.finish_reasons[choice.get("index", 0)] = choice["finish_reason"]
        return True

    @property
    def finished(self) -> bool:
        """Whether every choice has given its finish reason."""
        return len(self.finish_reasons) >= self.choices

    @property
    def lost_a_choice(self) -> bool:
        """Whether a choice lacks its finish reason, though another has one or several were asked for."""
        return (bool(self.finish_reasons) or self.choices > 1) and not self.finished


class Relay:
    """Takes an upstream's packets and gives what the client is to get.

    The bytes of an event are passed as they came. What is left out: a usage chunk that nobody asked for,
    comments before the first chunk, and all that follows `[DONE]`. Exactly one `[DONE]` ends a whole stream.

    Args:
        model: the model's public name, for errors.
        state: told of every chunk.
    """

    def __init__(self, model: str, state: StreamState) -> None:
        self._model = model
        self._state = state
        self._events = Events()
        self.spoke = False
        """Whether the last packet held a chunk, and not only comments."""
        self.ended = False
        """Whether the stream has come to its end, good or bad."""
        self.failure: ProviderError | None = None
        """What is wrong with the stream; to be raised after what `feed` has given."""

    def feed(self, packet: bytes) -> bytes:
        """Return what goes on to the client for one packet; an empty packet is the connection's end."""
        plain = self._plain(packet)
        self.spoke = plain > 0
        if plain == len(packet) > 0:
            return packet
        out = [packet[:plain]]
        try:
            for event in self._events.feed(packet[plain:]):
                if self._takes(event):
                    out.append(event)
                if self.ended:
                    break
            if not packet and not self.ended:
                self._end(said_done=(event_data(self._events.rest + b"\n\n") or b"").strip() == b"[DONE]")
        except ProviderError as failure:
            self.failure = failure
        except EventTooLong:
            self.failure = unreadable(self._model)
        if self.failure:
            self.ended = True
        elif self.ended:
            out.append(DONE)
        return b"".join(out)

    def _plain(self, packet: bytes) -> int:
        """Return how much of a packet is whole events of plain chunks: checked at once, passed as it is.

        Mostly that is all of it; of a stream's last packet it is all but the last three events, which are its end; else
        it is nothing.
        """
        if self._events.rest or b"\r" in packet:
            return 0
        end = packet.rfind(b"\n\n")
        if self._is_plain(packet[: max(end, 0)]):
            return end + 2
        for _ in range(3):
            end = packet.rfind(b"\n\n", 0, max(end, 0))
        return end + 2 if self._is_plain(packet[: max(end, 0)]) else 0

    def _is_plain(self, text: bytes) -> bool:
        if not text.startswith(b"data: "):
            return False
        events = text[6:].split(b"\n\ndata: ")
        lines = b"\n".join(events)
        try:
            chunks = read_plain(lines)
            lines.decode()  # of what it passes over, the decoder doesn't look at the encoding
        except (DecodeError, RecursionError, UnicodeDecodeError):
            return False
        if not len(chunks) == len(events) == lines.count(b"\n") + 1:  # one of several lines
            return False
        self._state.chunks += len(chunks)
        self._state.model = chunks[-1].model
        return True

    def _takes(self, event: bytes) -> bool:
        data = event_data(event)
        if data is None or not data.strip():
            return self._state.chunks > 0
        self.spoke = True
        if data.strip() == b"[DONE]":
            self._end(said_done=True)
            return False
        try:
            chunk = from_json(data, allow_inf_nan=False)
            if chunk.get("error"):
                raise failure_in_body(self._model, chunk["error"])
            return self._state.see(chunk)
        except (ValueError, AttributeError, KeyError, TypeError):
            raise unreadable(self._model) from None

    def _end(self, *, said_done: bool) -> None:
        """A stream is whole if it says `[DONE]`, or if every choice has its finish reason."""
        self.ended = True
        if self._state.lost_a_choice or not (said_done or self._state.finished):
            raise cut_off(self._model)
