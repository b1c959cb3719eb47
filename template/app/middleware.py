"""Pure ASGI middleware. From outside in: request context, CORS, refusals, last-resort error, then the team's own."""

import asyncio
import time
from itertools import chain
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app.draining import Drain
from app.errors import AppError, Overloaded
from app.exchange import Exchange, exchange_of
from app.logs import where
from app.metrics import Metrics
from app.problems import problem_response
from app.tracing import trace_id

ALWAYS_ANSWERED = ("/health", "/ready", "/metrics")
MAX_HEAD_BYTES = 64 * 1024
"""Of a request's path, query and headers. The server itself takes any size."""
WAIT_FOR_PLACE = 0.5
"""Seconds that a request waits when `max_in_flight` is reached."""


class RequestContext:
    """Gives every request an id, a record, and one line in the log; knows what is in flight.

    Args:
        app: the application inside.
        drain: told of requests in flight.
        metrics: told of every request.
        max_body_bytes: largest body, declared or counted, in bytes.
    """

    def __init__(self, app: ASGIApp, drain: Drain, metrics: Metrics, max_body_bytes: int) -> None:
        self.app = app
        self.drain = drain
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes
        self._log: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        exchange = scope["app.exchange"] = Exchange(scope, receive, send, self.max_body_bytes)
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
            del scope["app.exchange"]  # it holds what holds the scope: without the circle, all goes at once

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
    """

    def __init__(self, app: ASGIApp, drain: Drain, max_in_flight: int) -> None:
        self.app = app
        self.drain = drain
        self.places = asyncio.Semaphore(max_in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        probe = scope["path"] in ALWAYS_ANSWERED
        refusal = self._refusal(scope, probe=probe)
        if refusal or probe:
            await (problem_response(refusal, scope) if refusal else self.app)(scope, receive, send)
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
            await self.app(scope, receive, send)
        finally:
            self.places.release()

    def _refusal(self, scope: Scope, *, probe: bool) -> AppError | HTTPException | None:
        head = len(scope["path"]) + len(scope["query_string"]) + len(b"".join(chain.from_iterable(scope["headers"])))
        if head > MAX_HEAD_BYTES:
            return HTTPException(431, f"Path and headers are larger than {MAX_HEAD_BYTES} bytes.")
        if probe:
            return None
        if self.drain.draining:
            return self.drain.error()
        exchange = exchange_of(scope)
        return exchange.too_large() if exchange.declares_too_much else None


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
        except (AppError, HTTPException) as error:  # in the team's own middleware
            if exchange.status == 0:
                await problem_response(error, scope)(scope, receive, send)
            else:
                raise
        except Exception as error:
            self.log.error("unexpected", request_id=exchange.request_id, **where(error))
            if exchange.status == 0:
                await problem_response(AppError(), scope)(scope, receive, send)
            else:
                raise
