"""ServerProtocol: uvicorn's HTTP protocol, with bounds and deadlines on what a client sends, and on how it reads.

uvicorn's own has none: it holds any head in memory, takes trailers for headers, loses the body behind an `Upgrade`, and
waits for ever. Every way to start the service names this class as uvicorn's `http`.
"""

import contextlib
import socket
from asyncio import Transport
from collections.abc import Callable
from typing import Any, Literal

import structlog
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.config import Timeouts
from app.http.cycles import BrokenBody, Cycle
from app.http.exchange import SECURITY_HEADERS, new_request_id
from app.http.heads import MAX_HEAD_BYTES
from app.http.problems import problem_response
from app.llm.timers import Timer
from app.telemetry.metrics import Metrics

BODY_BYTES_A_SECOND = 1000
"""A slower body is not waited for. It is counted over `timeouts.receive`."""
UNSENT_BYTES = 128 * 1024
"""What the operating system takes in advance: it would take megabytes, and so hide whether a client reads on."""
LINGER = 2.0
"""Seconds that a connection stays open behind a refusal, so that a client that is still sending can read it."""

log = structlog.get_logger("app.access")


class ServerProtocol(HttpToolsProtocol):
    """One connection of a client: one request after the other.

    - A head is at most `MAX_HEAD_BYTES`, and so are trailers, which are dropped.
    - An offered `Upgrade` is ignored, and the request is answered as what it is (RFC 9110, section 7.8), except for a
      WebSocket where a library for it is installed.
    - What follows a request that is still being answered is not read as a request: the connection ends with the answer.
    - A head must arrive within `timeouts.receive`, and a body at `BODY_BYTES_A_SECOND`.
    - A client that closes its side of the connection, or does not read on for `timeouts.idle`, has left.
    """

    # Beside uvicorn's attributes there is no room for more in a dict whose names all connections share.
    __slots__ = (
        *("_arrived", "_held", "_metrics", "_moved", "_phase", "_timeouts", "_unsent", "_when_lost"),
        *("receiving", "sending", "silence"),
    )

    transport: Transport
    scope: Any  # an HTTPScope, and what is ours in it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.app
        while not hasattr(app, "state") and hasattr(app, "app"):  # uvicorn's own middleware is around it
            app = app.app
        state = getattr(app, "state", None)
        self._metrics: Metrics | None = getattr(state, "metrics", None)
        self._timeouts: Timeouts = state.settings.timeouts if self._metrics and state else Timeouts()
        self._phase: Literal["between", "head", "body", "over"] = "between"
        """Which part of a request comes next; "over": whatever comes is dropped."""
        self._moved = False
        """Whether the newest bytes completed a head, or had a part of a body in them."""
        self.url, self.headers = b"", []  # also before the first request
        self._held = 0
        """Bytes since the newest of those that did."""
        self._arrived = 0
        """Bytes of the body since its timer was set."""
        self.receiving = Timer(self.loop, self._check_receiving)
        self.sending = Timer(self.loop, self._check_sending)
        self.silence = Timer(self.loop)
        self._when_lost: Callable[[], None] | None = None
        self._unsent = 0
        """Bytes that waited to be sent when their timer was set; 0 when none wait."""

    # What arrives

    def connection_made(self, transport: Any) -> None:
        """Wait for the first byte no longer than for a head."""
        super().connection_made(transport)
        with contextlib.suppress(AttributeError, OSError):  # another platform, or a Unix socket
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self.receiving.start(self._timeouts.receive)

    def data_received(self, data: bytes) -> None:
        """Parse bytes: never more of them at once than a head may have."""
        starts = range(0, len(data), MAX_HEAD_BYTES)
        for piece in [data[start : start + MAX_HEAD_BYTES] for start in starts] if len(starts) > 1 else [data]:
            if self._phase == "over":
                return
            self._moved = False
            try:
                self._feed(piece)
                self._held = 0 if self._moved else self._held + len(piece)
                if self._held > MAX_HEAD_BYTES:
                    raise HTTPException(431, f"Path and headers, or trailers, are larger than {MAX_HEAD_BYTES} bytes.")
            except (HttpParserError, HttpParserUpgrade, HTTPException) as error:
                self._refuse(error)
                return
        if self._phase != "between" and not self.receiving.is_set:
            self._await_receiving()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
            return
        except HttpParserUpgrade as upgrade:
            behind = data[upgrade.args[0] :]
        if "method" in self.scope:
            self.receiving.close()
            self._phase = "between"  # another protocol goes on
            self.handle_websocket_upgrade()
            return
        # This parser takes nothing more. Another one gets the head without the offer, and then what was behind it.
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            kept = value.lower().replace(b"upgrade", b"") if name.endswith(b"connection") else value
            head += [name, b": ", kept, b"\r\n"]
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"".join([*head, b"\r\n", behind]))

    def on_message_begin(self) -> None:
        """Start a request, unless the one before it is still being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            raise HTTPException(400, "One request at a time.")
        self.receiving.stop()
        super().on_message_begin()
        self._phase = "head"

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        self._moved = True
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise HTTPException(505, "This server speaks HTTP/1.1 and HTTP/1.0.")
        if len(self.url) > MAX_HEAD_BYTES:
            raise HTTPException(431, f"The path is larger than {MAX_HEAD_BYTES} bytes.")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise HTTPException(400, "This server is no proxy.")
            if self._should_upgrade():
                super().on_headers_complete()
            return
        super().on_headers_complete()
        self.cycle.__class__ = Cycle
        self.scope["app.connection"] = self
        self.headers = []  # what is appended from now on are trailers
        self._phase = "body"
        self.receiving.stop()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body until the application receives it."""
        self._moved = True
        self._arrived += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Tell the application that the body is complete."""
        if not self.parser.should_upgrade():
            self._phase = "between"
            if self.cycle.response_complete:  # before the body
                self.receiving.start(self._timeouts.keep_alive)
            else:
                self.receiving.stop()
            super().on_message_complete()

    def _await_receiving(self) -> None:
        self._arrived = 0
        self.receiving.start(self._timeouts.receive)

    def _check_receiving(self) -> None:
        seconds, cycle = self._timeouts.receive, self.cycle
        if self._phase == "between":
            self.transport.close()  # no request has come
        elif self._phase == "over":
            self.transport.abort()
        elif self._phase == "head":
            self._refuse(HTTPException(408, f"The head did not arrive within {seconds:g} s (timeouts.receive)."))
        elif self.flow.read_paused or cycle.waiting_for_100_continue or self._arrived >= seconds * BODY_BYTES_A_SECOND:
            self._await_receiving()
        else:
            slow = f"The body came slower than {BODY_BYTES_A_SECOND} bytes a second (timeouts.receive)."
            self._refuse(HTTPException(408, slow))

    # What is refused

    def _refuse(self, error: Exception) -> None:
        """Read no further request on this connection, and tell its client why if that is still possible."""
        found = error if isinstance(error, HTTPException) else error.__context__  # raised in the parser's callbacks
        refusal = found if isinstance(found, HTTPException) else HTTPException(400, "This is no valid HTTP request.")
        phase, self._phase = self._phase, "over"
        self.receiving.stop()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            if phase == "body":
                self.transport.close()  # the rest of a request that has been answered
            else:
                self._answer(refusal)
            return
        cycle.keep_alive = False
        if phase == "body" and cycle.response_started:
            self.transport.abort()
        elif phase == "body":
            waiting, cycle.message_event = cycle.message_event, BrokenBody(refusal)
            waiting.set()

    def _answer(self, refusal: HTTPException) -> None:
        status, request_id = refusal.status_code, new_request_id()
        known = {"path": self.url.decode("latin-1"), "headers": self.headers}
        response = problem_response(refusal, known, request_id)
        head = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close"), *SECURITY_HEADERS]
        head.append((b"x-request-id", request_id.encode()))
        lines = [b"%b: %b\r\n" % header for header in head]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", bytes(response.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.receiving.start(LINGER)
        else:
            self.transport.close()
        log.info("request refused", status=status, reason=refusal.detail, request_id=request_id)
        if self._metrics:
            self._metrics.requests("none", status, "none").observe(0)

    # What is sent

    def write(self, body: bytes) -> bool:
        """Send a part of a response as a chunk; return False if its client must be waited for, or takes no chunks."""
        cycle = self.cycle
        if self.flow.write_paused or not cycle.chunked_encoding or cycle.disconnected or cycle.response_complete:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    async def until_sent(self) -> bool:
        """Wait until nothing of a response is left to be sent; return whether its client took all of it."""
        if self.transport.get_write_buffer_size():
            self.transport.set_write_buffer_limits(0)  # writing is paused until nothing is left
            await self.flow.drain()
            if self._unsent:
                return False
            if not self.transport.is_closing():
                self.transport.set_write_buffer_limits()
        return True

    def pause_writing(self) -> None:
        """Wait for the client to read on."""
        super().pause_writing()
        self._await_sending()

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        self._unsent = 0
        self.sending.stop()
        super().resume_writing()

    def _await_sending(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self.sending.start(self._timeouts.idle)

    def _check_sending(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._await_sending()
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Wait for the next request; no more than one is read at a time."""
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self._phase == "between":
                self.receiving.start(self._timeouts.keep_alive)

    # The end

    def eof_received(self) -> None:
        """The client has closed its side: it has left, unless it has its whole response."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application."""
        for timer in (self.receiving, self.sending, self.silence):
            timer.close()
        super().connection_lost(exc)
        if self._when_lost:
            self._when_lost()

    def call_when_lost(self, callback: Callable[[], None] | None) -> None:
        """Call a function when the connection is lost, at once if it is; None calls nothing any longer."""
        self._when_lost = callback
        if callback:
            self.flow.resume_reading()  # it pauses behind much of a body, and then nobody sees the client leave
            if self.cycle.disconnected:
                callback()
