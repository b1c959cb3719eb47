"""What a provider really sends, seen below LiteLLM: its status, headers, errors, and whether its stream has ended.

LiteLLM's own attributes can't be believed for every provider: it invents the end of a stream that was cut off, changes
statuses, and loses headers and bodies of errors. All its requests pass one HTTP transport, which is observed here.
"""

import contextlib
import functools
import re
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import msgspec
from multidict import CIMultiDict

from app.llm.failures import error_in
from app.llm.sse import ENCODINGS, MAX_EVENT_BYTES, Events, EventTooLong, event_data

MAX_BODY_BYTES = 64 * 1024
"""Of a response, as much as is kept: an error is shorter."""
LONGEST_MARK = 256
"""Bytes of a stream that are kept to find a mark of its end that two packets share."""

END = re.compile(
    rb'"(?:finish_reason|finishReason|stop_reason|stopReason|done_reason|blockReason)"\s*:\s*'
    rb'"(?!not_finished|FINISH_REASON_UNSPECIFIED|BLOCK(?:ED)?_REASON_UNSPECIFIED|(?i:error)")(?P<tools>(?i:tool))?[^"]+"'
    rb'|"done"\s*:\s*true|"is_finished"\s*:\s*true|data:\s*\[DONE\]|"type"\s*:\s*"message_stop"'
)
"""How providers end a stream: OpenAI and those like it, Anthropic, Google, Bedrock, Ollama, Cohere, IBM.

What a model says can't look like this: inside a JSON string, each quote has a backslash before it. A reason counts with
its last quote: a packet may end within it, after which it could still be another one."""

ERROR = re.compile(rb'"error"', re.IGNORECASE)
LINES = re.compile(r"ndjson|jsonl|stream\+json")
"""Content types of a stream with a line of JSON for each event."""


class Wire:
    """The requests that one call of LiteLLM makes, and the responses to them.

    Attributes:
        sent: how many requests were sent.
        status: status of the newest response; None if none has come.
        headers: its headers.
        body: the beginning of its body, up to MAX_BODY_BYTES; empty for a stream of events.
        ended: whether the provider's own stream has said that it has ended.
        calls_tools: whether it has said that it ended in order to call a tool.
        is_broken: whether its encoding is unknown, or one of its events is not JSON though it begins like it. LiteLLM
            leaves such events out.
        error: the error that one of its events tells, which LiteLLM may leave out too; None if there is none.
        is_binary: whether it is Amazon's stream, whose errors LiteLLM reads.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.status: int | None = None
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.body = b""
        self.ended = self.calls_tools = False
        self.is_broken = self.is_binary = False
        self.error: Any = None
        self._tail = b""
        self._events: Events | Lines | None = None
        self._stream: Any = None

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """Observe the requests that are sent in this context. It must not be kept across a `yield`."""
        token = _observer.set(self)
        try:
            yield
        finally:
            _observer.reset(token)

    async def close(self) -> None:
        """Close the connection of a response that is not complete. LiteLLM leaves it open for some providers."""
        if self._stream is not None:
            with contextlib.suppress(Exception):
                await self._stream.aclose()

    def responds(self, status: int, headers: Any, stream: Any) -> None:
        """A response has begun."""
        self.status = status
        self.headers = CIMultiDict(headers.items())
        self.body = self._tail = b""
        kind = self.headers.get("content-type", "")
        self.is_binary = kind.startswith("application/vnd.amazon.eventstream")
        self._events = Events() if kind.startswith("text/event-stream") else Lines() if LINES.search(kind) else None
        self._stream = stream
        self.is_broken = self.headers.get("content-encoding", "").lower() not in ENCODINGS

    def receives(self, data: bytes) -> None:
        """A part of the response's body has come."""
        if self._events is None:
            self.body = (self.body + data)[:MAX_BODY_BYTES]
        elif not self.is_broken:
            with contextlib.suppress(EventTooLong):
                for event in self._events.feed(data):
                    self._read(event if isinstance(self._events, Lines) else event_data(event) or b"")
        if not self.ended:
            tail = self._tail + data
            end = END.search(tail)
            self.ended = end is not None
            self.calls_tools = end is not None and end["tools"] is not None
            self._tail = tail[-LONGEST_MARK:]

    def _read(self, text: bytes) -> None:
        """Note whether an event that begins like JSON is JSON, and whether it is an error."""
        if not text.lstrip().startswith(b"{"):
            return
        try:
            msgspec.json.decode(text, type=msgspec.Raw)
            if self.error is None and ERROR.search(text):
                self.error = error_in(msgspec.json.decode(text))
        except msgspec.DecodeError:
            self.is_broken = True


class Lines:
    """Cuts packets into lines, each of which is an event."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, packet: bytes) -> Iterator[bytes]:
        """Yield each line that this packet completes.

        Raises:
            EventTooLong: a line is longer than MAX_EVENT_BYTES.
        """
        *lines, self._rest = (self._rest + packet).split(b"\n")
        yield from lines
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLong


_observer: ContextVar[Wire | None] = ContextVar("_observer", default=None)


def is_observed() -> bool:
    """Return whether this runs within a call of ours, and not within one that somebody's own code makes of LiteLLM."""
    return _observer.get() is not None


@functools.cache
def observe_transport() -> None:
    """Make LiteLLM's transport tell the Wire of each call, and follow no redirects.

    A redirect would send every key header but `Authorization` to another host.
    """
    import httpx
    from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport

    class ObservedStream(httpx.AsyncByteStream):
        def __init__(self, stream: Any, wire: Wire) -> None:
            self._stream = stream
            self._wire = wire

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async with contextlib.aclosing(aiter(self._stream)) as packets:
                async for packet in packets:
                    self._wire.receives(packet)
                    yield packet

        async def aclose(self) -> None:
            await self._stream.aclose()

    transport: Any = LiteLLMAiohttpTransport
    send = transport.handle_async_request

    async def send_observed(self: Any, request: Any) -> Any:
        wire = _observer.get()
        if wire:
            wire.sent += 1
            request.headers["Accept-Encoding"] = "identity"  # a compressed stream can't be observed
        response = await send(self, request)
        if request.method == "POST" and response.has_redirect_location:
            del response.headers["Location"]
        if wire:
            wire.responds(response.status_code, response.headers, response.stream)
            response.stream = ObservedStream(response.stream, wire)
        return response

    transport.handle_async_request = send_observed
