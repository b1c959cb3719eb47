"""Relay: passes a provider's stream on, event by event, and checks that it is complete."""

from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.json import Decoder
from pydantic_core import to_json

from app.errors import ProviderError
from app.llm.failures import cut_off, error_in, failure_in_body, unreadable
from app.llm.json_text import read_json, read_plain
from app.llm.sse import BYTE_ORDER_MARK, DONE, Events, EventTooLong, event_data, event_name
from app.llm.targets import Target


class PlainDelta(Struct, gc=False):
    """A delta, whatever is in it."""


class PlainChoice(Struct, gc=False):
    """A choice with a delta and without finish_reason."""

    delta: PlainDelta
    finish_reason: None = None


class PlainChunk(Struct, gc=False):
    """A chunk without finish_reason, usage or error. Its other fields are not read."""

    choices: Annotated[list[PlainChoice], Meta(min_length=1)]
    model: str | None = None
    usage: None = None
    error: None = None


decode_chunks = Decoder(PlainChunk).decode_lines


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


class Relay:
    """Takes a provider's packets, and returns what the client gets.

    An event's bytes are passed on as they came, unless a chunk lacks choices or a delta. Left out are: a usage chunk
    that the client did not ask for, events without a chunk in them (comments, `event: ping`, `null`), and everything
    after `[DONE]`. Exactly one `[DONE]` ends a complete stream. A blank line never follows what has no data: after an
    `id:` line, OpenAI's SDKs would take that for an event.

    Args:
        target: the model, for errors.
        state: records every chunk.
    """

    end = DONE
    """What ends a complete stream."""

    def __init__(self, target: Target, state: StreamState) -> None:
        self._target = target
        self._state = state
        self._events = Events()
        self.spoke = False
        """Whether the last packet had a chunk in it, and not only comments."""
        self.ended = False
        """Whether the stream has ended, well or badly."""
        self.failure: ProviderError | None = None
        """What is wrong with the stream. Whoever reads it raises this after passing on what `feed` returned."""

    def feed(self, packet: bytes) -> bytes:
        """Return what the client gets for one packet; an empty packet means that the connection has ended."""
        plain = self._plain(packet)
        self.spoke = plain > 0
        if plain == len(packet) > 0:
            return packet
        out = [packet[:plain]]
        try:
            for event in self._events.feed(packet[plain:]):
                out.append(self._passed(event))
                if self.ended:
                    break
            if not packet and not self.ended:
                self._end(said_done=(event_data(self._events.rest + b"\n\n") or b"").strip() == b"[DONE]")
        except ProviderError as failure:
            self.failure = failure
        except EventTooLong:
            self.failure = unreadable(self._target.name)
        if self.failure:
            self.ended = True
        elif self.ended:
            out.append(self.end)
        return b"".join(out)

    def whole(self, answer: dict[str, Any]) -> bytes:
        """Return the events of a stream for a whole answer, which some servers send though a stream was asked for.

        Raises:
            ProviderError: the answer is none.
        """
        return stream_of(answer, self._state, self._target.name)

    def _plain(self, packet: bytes) -> int:
        """Return how many bytes of a packet are whole events of plain chunks, which are passed on as they are.

        Usually that is the whole packet. In a stream's last packet it is all but the last three events, which are the
        end of the stream. Otherwise it is 0.
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
        chunks = read_plain(text[6:].split(b"\n\ndata: "), decode_chunks)
        if not chunks:
            return False
        self._state.chunks += len(chunks)
        self._state.size += len(text)
        self._state.model = chunks[-1].model
        return True

    def _passed(self, event: bytes) -> bytes:
        """Return what the client gets for one event: the event itself, or nothing; in one case a translation.

        Raises:
            ProviderError: the event is an error, or can't be read.
        """
        event = event.removeprefix(BYTE_ORDER_MARK)  # OpenAI's SDKs would lose the event
        data = (event_data(event) or b"").strip()
        if not data:
            return b""
        if data == b"[DONE]":
            self._end(said_done=True)
            return b""
        try:
            chunk = read_json(data)
            is_error = b"event:" in event and event_name(event) == b"error"
            if not isinstance(chunk, dict):
                if is_error:
                    raise failure_in_body(self._target, chunk)
                return b""
            if (error := error_in(chunk)) or is_error:
                raise failure_in_body(self._target, error or chunk)
            if chunk.get("choices") is None and not chunk.get("usage"):
                return b""  # a ping, or something else that is no chunk
            if _complete(chunk):
                event = b"data: " + to_json(chunk) + b"\n\n"
            self.spoke = True
            return event if self._state.see(chunk, len(event)) else b""
        except (ValueError, AttributeError, KeyError, TypeError):
            raise unreadable(self._target.name) from None

    def _end(self, *, said_done: bool) -> None:
        """End the stream. It is complete if it says `[DONE]`, or if every choice has its finish reason."""
        self.ended = True
        if self._state.lost_a_choice or not (said_done or self._state.finished):
            raise cut_off(self._target.name)


def _complete(chunk: dict[str, Any]) -> bool:
    """Add what OpenAI's clients read in every chunk: choices, and in each a delta; return whether any was missing."""
    if chunk.get("choices") is None:
        chunk["choices"] = []
        return True
    lacking = [choice for choice in chunk["choices"] if choice.get("delta") is None]
    for choice in lacking:
        choice["delta"] = {}
    return bool(lacking)


def stream_of(answer: dict[str, Any], state: StreamState, model: str) -> bytes:
    """Return the events of a stream for a whole answer, which some servers send though a stream was asked for.

    Args:
        answer: OpenAI's `chat.completion`.
        state: told of every chunk.
        model: the model's public name, for errors.

    Raises:
        ProviderError: the answer has no choices, or lacks one.
    """
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage", "content")}
    head["object"] = "chat.completion.chunk"
    try:
        choices = []
        for choice in answer["choices"]:
            delta = dict(choice.get("message") or {})
            if delta.get("tool_calls"):
                delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(delta["tool_calls"])]
            choices.append({**{k: v for k, v in choice.items() if k != "message"}, "delta": delta})
        chunks: list[dict[str, Any]] = [{**head, "choices": choices}]
        if answer.get("usage"):
            chunks.append({**head, "choices": [], "usage": answer["usage"]})
        events = [(chunk, b"data: " + to_json(chunk) + b"\n\n") for chunk in chunks]
        passed = [event for chunk, event in events if state.see(chunk, len(event))]
    except (AttributeError, KeyError, TypeError):
        raise unreadable(model) from None
    if not state.finished:
        raise cut_off(model)
    return b"".join(passed) + DONE
