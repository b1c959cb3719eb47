"""Pure ASGI middleware. From outside in: request context, CORS, refusals, last-resort error."""

import asyncio
import re
import secrets
import time
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.draining import Drain
from app.errors import AppError, Overloaded
from app.llm.record import CallRecord
from app.logs import where
from app.metrics import Metrics
from app.problems import problem_response
from app.tracing import trace_id

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
ALWAYS_ANSWERED = ("/health", "/ready", "/metrics")
MAX_HEAD_BYTES = 64 * 1024
"""Of a request's path, query and headers. The server itself takes any size."""
WAIT_FOR_PLACE = 0.5
"""Seconds that a request waits when `max_in_flight` is reached."""
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


class Exchange:
    """One request and its response: id, record, and what happens when the client leaves or the server ends."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.request_id = _request_id(scope)
        self.record = CallRecord()
        self.status = 0
        self.error: str | None = None
        self.aborted_by: AppError | None = None
        self._has_body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in scope["headers"]
        )
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._listener: asyncio.Task[None] | None = None
        self._wants_cancel = False
        self._body_read = False
        self._sent_all = False
        self.client_left = False

    async def receive(self) -> Message:
        """Receive, as ASGI says; once we listen for the client's leaving, that is all there is to hear."""
        if self._listener:
            if not self._body_read:
                self._body_read = True
                return {"type": "http.request"}  # there is no body
            await asyncio.shield(self._listener)
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._body_read = True
            self._listen()
        return message

    async def send(self, message: Message) -> None:
        """Send, as ASGI says, with the request id on every response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message.setdefault("headers", [])
            message["headers"] = [*headers, (b"x-request-id", self.request_id.encode()), *SECURITY_HEADERS]
        elif not message.get("more_body", False):
            self._sent_all = True
        await self._send(message)

    def cancel_on_disconnect(self) -> None:
        """Cancel the endpoint as soon as its client has left."""
        self._wants_cancel = True
        self._listen()

    def abort(self, error: AppError) -> None:
        """End this request with an error, wherever it is."""
        if self.aborted_by is None and not self._sent_all and self._task:
            self.aborted_by = error
            self._task.cancel()

    def close(self) -> None:
        """Stop listening."""
        if self._listener:
            self._listener.cancel()

    def _listen(self) -> None:
        if self._wants_cancel and not self._listener and (self._body_read or not self._has_body):
            self._listener = asyncio.create_task(self._until_client_leaves())

    async def _until_client_leaves(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._sent_all and self._task:
            self.client_left = True
            self._task.cancel()


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange that a request is part of."""
    exchange: Exchange = scope["app.exchange"]
    return exchange


class RequestContext:
    """Gives every request an id, a record, and one line in the log; knows what is in flight.

    Args:
        app: the application inside.
        drain: told of requests in flight.
        metrics: told of every request.
    """

    def __init__(self, app: ASGIApp, drain: Drain, metrics: Metrics) -> None:
        self.app = app
        self.drain = drain
        self.metrics = metrics
        self._log: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        exchange = scope["app.exchange"] = Exchange(scope, receive, send)
        self.drain.enter(exchange)
        self.metrics.requests_in_flight.inc()
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if not exchange.client_left:
                raise
        finally:
            exchange.close()
            self.drain.leave(exchange)
            self.metrics.requests_in_flight.dec()
            self._tell(scope, exchange, time.perf_counter() - started)

    def _tell(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        record = exchange.record
        route = getattr(scope.get("route"), "path", "none")
        status = 499 if exchange.client_left else exchange.status
        self.metrics.of(self.metrics.requests, route, status, record.model or "none").observe(seconds)
        if exchange.client_left:
            self.metrics.disconnects.labels(route).inc()
        line: dict[str, Any] = {
            "method": scope["method"],
            "path": scope["path"][:256],
            "status": status,
            "ms": round(seconds * 1000, 2),
            "request_id": exchange.request_id,
        }
        if trace := trace_id():
            line["trace_id"] = trace
        if record.caller:
            line["caller"] = record.caller
        if record.model:
            line["model"] = record.model
            line["tokens_in"], line["tokens_out"] = record.prompt_tokens, record.completion_tokens
        if len(record.path) > 1:
            line["tried"] = record.path
        if exchange.error:
            line["error"] = exchange.error
        if self._log is None:  # bound once: by now the logs are configured
            self._log = structlog.get_logger("app.access").bind()
        self._log.info("request", **line)


class Refusals:
    """Turns work away: while the server drains, while it has too much, and where a head or a body is too large.

    Args:
        app: the application inside.
        drain: tells whether the server drains.
        max_in_flight: most requests at once.
        max_body_bytes: largest body, declared or counted, in bytes.
    """

    def __init__(self, app: ASGIApp, drain: Drain, max_in_flight: int, max_body_bytes: int) -> None:
        self.app = app
        self.drain = drain
        self.places = asyncio.Semaphore(max_in_flight)
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = len(scope["path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in scope["headers"])
        if head > MAX_HEAD_BYTES:
            error = HTTPException(431, f"Path and headers are larger than {MAX_HEAD_BYTES} bytes.")
            await problem_response(error, scope)(scope, receive, send)
            return
        if scope["path"] in ALWAYS_ANSWERED:
            await self.app(scope, receive, send)
            return
        if self.drain.draining:
            await problem_response(self.drain.error(), scope)(scope, receive, send)
            return
        if self.places.locked():
            try:
                async with asyncio.timeout(WAIT_FOR_PLACE):
                    await self.places.acquire()
            except TimeoutError:
                overloaded = Overloaded("This server has too much to do. Try again in a moment.", retry_after=1)
                await problem_response(overloaded, scope)(scope, receive, send)
                return
        else:
            await self.places.acquire()  # at once: no task switch
        try:
            await self._within_body_limit(scope, receive, send)
        finally:
            self.places.release()

    async def _within_body_limit(self, scope: Scope, receive: Receive, send: Send) -> None:
        too_large = HTTPException(413, f"The body is larger than {self.max_body_bytes} bytes (setting max_body_bytes).")
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared[:20]) > self.max_body_bytes:
            await problem_response(too_large, scope)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise too_large
            return message

        await self.app(scope, counted, send)


class LastResort:
    """Answers what nothing else has answered: inside CORS and the request id, so that its 500 has both."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.log = structlog.get_logger("app.errors")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if exchange.aborted_by is None or exchange.client_left:
                raise
            if exchange.status == 0:
                await problem_response(exchange.aborted_by, scope)(scope, receive, send)
        except ClientDisconnect:
            exchange.client_left = True  # before its body was whole
        except Exception as error:
            self.log.error("unexpected", request_id=exchange.request_id, **where(error))
            if exchange.status == 0:
                await problem_response(AppError(), scope)(scope, receive, send)
            else:
                raise


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if REQUEST_ID.fullmatch(value) else secrets.token_hex(16)
    return secrets.token_hex(16)
