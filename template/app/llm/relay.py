"""Relay: passes a provider's stream on, event by event, and checks that it is complete."""

from typing import Any

from pydantic_core import to_json

from app.errors import ProviderError
from app.llm.failures import cut_off, error_in, failure_in_body, unreadable
from app.llm.json_text import read_json
from app.llm.odd_answers import complete_chunk, stream_of
from app.llm.plain_chunks import PlainChunks
from app.llm.sse import BYTE_ORDER_MARK, DONE, Events, EventTooLong, event_data, event_name
from app.llm.stream_state import StreamState
from app.llm.targets import Target


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
        self._plain_chunks = PlainChunks()
        self.spoke = False
        """Whether the last packet had a chunk in it, and not only comments."""
        self.ended = False
        """Whether the stream has ended, well or badly."""
        self.failure: ProviderError | None = None
        """What is wrong with the stream. Whoever reads it raises this after passing on what `feed` returned."""

    def feed(self, packet: bytes) -> bytes:
        """Return what the client gets for one packet; an empty packet means that the connection has ended."""
        events, out = self._events, []
        if not events.rest:
            end, count = self._plain_chunks.at(packet, 0)
            if end == len(packet) > 0:  # most packets of most streams
                self._count(packet, count)
                return packet
        self.spoke = False
        events.add(packet)
        try:
            while not self.ended and (whole := events.end()):
                end, count = self._plain_chunks.at(events.buffer, events.start)
                if count:
                    out.append(events.take(end))
                    self._count(out[-1], count)
                else:
                    out.append(self._passed(events.take(whole)))
            if not packet and not self.ended:
                self._end(said_done=(event_data(events.rest + b"\n\n") or b"").strip() == b"[DONE]")
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

    def _count(self, plain: bytes, count: int) -> None:
        """Count events that are passed on as they are, without being parsed."""
        self.spoke = True
        self._state.chunks += count
        self._state.size += len(plain)

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
            if complete_chunk(chunk):
                event = b"data: " + to_json(chunk) + b"\n\n"
            elif (
                self._state.chunks  # the first one has the role in it, so no other is like it
                and event == b"data: %b\n\n" % data
                and self._plain_chunks.learn(event, chunk)
            ):
                self._state.model = chunk.get("model")
                self._count(event, 1)  # as the next ones that are like it
                return event
            self.spoke = True
            return event if self._state.see(chunk, len(event)) else b""
        except (ValueError, AttributeError, KeyError, TypeError):
            raise unreadable(self._target.name) from None

    def _end(self, *, said_done: bool) -> None:
        """End the stream. It is complete if it says `[DONE]`, or if every choice has its finish reason."""
        self.ended = True
        if self._state.lost_a_choice or not (said_done or self._state.finished):
            raise cut_off(self._target.name)
