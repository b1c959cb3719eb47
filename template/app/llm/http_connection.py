"""One connection to a provider: one request and its response after the other."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from app.llm.http_response import Disconnected, Limit, Response, Unreached, Unreadable
from app.llm.timers import Timer

KEEP = 30.0
"""Seconds that an idle connection is kept."""
MAX_HEAD_BYTES = 64 * 1024
"""Of a response: no more headers are read, and no more bytes between two parts of a body."""
HAVE_NO_BODY = frozenset({204, 304})


class Origin(NamedTuple):
    """What a connection leads to; those to the same may be used one for another."""

    scheme: str
    host: str
    port: int
    proxy: str | None


class Connection(asyncio.Protocol):
    """A connection: one request after the other.

    Until a request is over, `_waiter` waits for its response's head, and then `_response` takes the body.

    Args:
        origin: what it leads to.
        outer: the connection that this one is encrypted on, if it is.

    Attributes:
        idle: where the connection waits for another request when a response is complete; None leaves it as it is.
    """

    __slots__ = (
        *("__weakref__", "_headers", "_held", "_in_head", "_is_over", "_limit", "_may_stay", "_outer", "_parser"),
        *("_parts", "_response", "_timer", "_until_close", "_waiter"),
        *("idle", "loop", "on_body", "origin", "transport"),
    )

    def __init__(self, origin: Origin, outer: "Connection | None" = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.origin = origin
        self.transport: asyncio.Transport
        if outer:
            self.transport = outer.transport  # until encryption is agreed on: a server may speak before
        self.idle: dict[Connection, None] | None = None
        self._outer = outer
        self._until_close = False
        self._waiter: asyncio.Future[Response] | None = None
        self._response: Response | None = None
        self._limit: Limit | None = None
        self._timer = Timer(self.loop, self._on_time)
        self._is_over = True
        self._parts: list[bytes] = []
        """Parts of a body that have just been parsed."""
        self.on_body = self._parts.append  # a stream has many: no function of ours is called for each
        self._headers: dict[str, str] = {}
        self._parser = HttpResponseParser(self)  # which asks for `on_body` now

    async def ask(self, request: bytes, limit: Limit | None = None) -> Response:
        """Send a request, and return the response when its head is there.

        Args:
            request: its bytes.
            limit: until when the response may take.

        Raises:
            HttpError: as `HttpClient.post` says.
            Exception: the limit's, when it has passed.
        """
        if self.transport.is_closing():
            raise Unreached("Disconnected")
        self._in_head = 0
        self._held = 0
        """Bytes since those that had a part of a body in them, or since the start."""
        self._is_over = False
        waiter: asyncio.Future[Response] = self.loop.create_future()
        self._waiter = waiter
        self._watch(limit)
        self.transport.write(request)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self.transport.abort()
            elif not waiter.exception():
                self.drop(waiter.result())
            raise
        finally:
            del waiter  # its exception's traceback refers to this frame, and so to the request

    @property
    def is_free(self) -> bool:
        """Whether no request is under way whose response is still read."""
        return self._is_over or (self._response is not None and self._response.is_left)

    def drop(self, response: Response) -> None:
        """End the connection, if this response is still arriving."""
        if response is self._response:
            self.transport.abort()

    def watch(self, response: Response, limit: Limit | None) -> None:
        """Fail the response when a limit passes, if it is still arriving; None waits for ever."""
        if response is self._response:
            self._watch(limit)

    def resume(self, response: Response) -> None:
        """Receive on, if this response is still arriving."""
        if response is self._response:
            self.transport.resume_reading()

    # What the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse bytes."""
        response = self._response
        try:
            if self._is_over:
                raise Unreadable  # nobody has asked for these
            self._held += len(data)
            self._parser.feed_data(data)
            self._hand_over()
            if self._held > MAX_HEAD_BYTES:
                raise Unreadable
        except (HttpParserError, HttpParserUpgrade, Unreadable):
            self._hand_over()
            self._fail(Unreadable)
            self.transport.abort()
            if response:
                response.tell()  # it may have been complete before what can't be read
            return
        if self._is_over and self.idle is not None:
            if self._may_stay and not self.unsent():
                self.transport.resume_reading()
                self.idle[self] = None
                self._timer.start(KEEP)
            else:
                self.transport.abort()
        if response:
            response.tell()

    def eof_received(self) -> None:
        """End the connection: the rest of a request that is still being sent leads to nothing."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what waits."""
        self._timer.close()
        if self.idle:
            self.idle.pop(self, None)
        response = self._response
        if self._until_close and response and exc is None:
            self._complete()
            response.tell()
        else:
            self._fail(Disconnected)

    def unsent(self) -> int:
        """Return the bytes of a request that were not sent yet; an encrypted transport counts none of those below."""
        return self.transport.get_write_buffer_size() + (self._outer.unsent() if self._outer else 0)

    def _fail(self, error: Callable[[], Exception]) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(error())
        elif self._response:
            self._response.fail(error)
        self._end()

    def _end(self) -> None:
        self._waiter = self._response = self._limit = None
        self._timer.stop()
        self._is_over = True

    def _watch(self, limit: Limit | None) -> None:
        self._limit = limit
        if limit:
            self._timer.set(limit.deadline)
        else:
            self._timer.stop()

    def _on_time(self) -> None:
        limit = self._limit
        if limit and limit.deadline > self.loop.time():
            self._timer.set(limit.deadline)  # it has moved on
        elif limit:
            self._fail(limit.expired)
            self.transport.abort()
        else:
            self.transport.close()  # it has been idle for too long

    def _hand_over(self) -> None:
        """Hand over what was parsed of a body."""
        if self._parts:
            self._held = 0
            body = b"".join(self._parts)
            self._parts.clear()
            if self._response and self._response.feed(body):
                self.transport.pause_reading()

    def _complete(self) -> None:
        self._hand_over()
        if self._response:
            self._response.complete()
        self._end()

    # What the parser finds

    def on_message_begin(self) -> None:
        """A response begins."""
        if self._is_over:
            raise Unreadable  # a second one
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; of a trailer, nothing is kept."""
        self._in_head += len(name) + len(value)
        if self._in_head > MAX_HEAD_BYTES:
            raise Unreadable
        if self._response is None:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Hand over the response, unless it is an interim one (RFC 9110, section 15.2)."""
        status = self._parser.get_status_code()
        if status < 200:
            return
        headers, self._headers = self._headers, {}
        self._until_close = (
            status not in HAVE_NO_BODY and "content-length" not in headers and "transfer-encoding" not in headers
        )
        self._may_stay = self._parser.should_keep_alive()
        self._response = Response(self, status, headers)
        waiter, self._waiter = self._waiter, None
        if waiter and not waiter.done():
            waiter.set_result(self._response)

    def on_message_complete(self) -> None:
        """The response is complete, unless it is an interim one."""
        if self._response:
            self._complete()
