"""Pure ASGI middleware. From the outside in: RequestContext, CORS, LoadShedding, ErrorBoundary, then the team's own."""

import asyncio
import time
from http import HTTPStatus
from itertools import chain
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import AppError, Overloaded, error_event
from app.http.draining import Drain
from app.http.exchange import Exchange, exchange_of
from app.http.problems import as_app_error, cause_of, problem_response
from app.quotas import MICRO
from app.telemetry.logs import exception_fields
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import trace_id

PROBES = ("/health", "/ready", "/metrics")
"""Paths that are answered even while the server is draining or overloaded."""
MAX_HEAD_BYTES = 64 * 1024
"""Of a request's path, query and headers. `ServerProtocol` reads little more; other servers may have no bound."""
CLOSE = {"Connection": "close"}
WAIT_FOR_PLACE = 0.5
"""Seconds that a request waits when `max_in_flight` is reached."""

log = structlog.get_logger("app.access")


class RequestContext:
    """Gives every request its Exchange, with an id, and writes one log line when it ends.

    Args:
        app: the application inside.
        drain: knows the requests in flight.
        metrics: counts every request.
        max_body_bytes: largest body, declared or counted, in bytes.
    """

    def __init__(self, app: ASGIApp, drain: Drain, metrics: Metrics, max_body_bytes: int) -> None:
        self.app = app
        self.drain = drain
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes
        self._log: Any = None  # bound at the first request, for speed: by then the logs are configured

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
            self._log_request(scope, exchange, time.perf_counter() - started)
            del scope["app.exchange"]  # breaks a reference cycle, so that no garbage collection is needed

    def _log_request(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        totals = exchange.totals
        route = _route_of(scope)
        status = 499 if exchange.client_left else exchange.status
        models = totals.models
        model = models[0] if len(models) == 1 else "several" if models else "none"
        self.metrics.requests(route, status, model).observe(seconds)
        if exchange.client_left:
            self.metrics.disconnects(route).inc()
        elif exchange.error and status < HTTPStatus.BAD_REQUEST:
            self.metrics.stream_errors(route, exchange.error).inc()
        line: dict[str, Any] = {
            "method": scope["method"],
            "path": scope["path"][:256],
            "status": status,
            "ms": round(seconds * 1000, 2),
            "request_id": exchange.request_id,
        }
        if trace := trace_id():
            line["trace_id"] = trace
        if exchange.caller:
            line["caller"] = exchange.caller
        if models:
            line["model"] = ", ".join(models)
            line["tokens_in"], line["tokens_out"] = totals.prompt_tokens, totals.completion_tokens
        if totals.cost is not None:
            line["cost_usd"] = totals.cost / MICRO
        if totals.calls > 1:
            line["calls"] = totals.calls
        if len(totals.tried) > totals.calls:  # a retry or a fallback
            line["tried"] = totals.tried
        if totals.left_out:
            line["left_out"] = totals.left_out
        if exchange.error:
            line["error"] = exchange.error
        if self._log is None:
            self._log = log.bind()
        self._log.info("request", **line)


def _route_of(scope: Scope) -> str:
    """Return the path of the route that has handled a request, with its variable parts as they were declared."""
    included = (scope.get("fastapi") or {}).get("effective_route_context")  # FastAPI's, of a router that was included
    inner = getattr(included, "starlette_route", None) or included or scope.get("route")
    path: str | None = getattr(inner, "path", None)
    return path or "none"


class LoadShedding:
    """Rejects requests while the server drains or is overloaded (503), oversized ones (431, 413), invalid ones (400).

    Args:
        app: the application inside.
        drain: tells whether the server is draining.
        max_in_flight: how many requests may be in flight; the next one waits for `WAIT_FOR_PLACE`.
    """

    def __init__(self, app: ASGIApp, drain: Drain, max_in_flight: int) -> None:
        self.app = app
        self.drain = drain
        self.places = asyncio.Semaphore(max_in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_probe = scope["path"] in PROBES
        rejection = self._rejection(scope, is_probe=is_probe)
        if rejection or is_probe:
            await (problem_response(rejection, scope) if rejection else self.app)(scope, receive, send)
            return
        if self.places.locked():
            try:
                async with asyncio.timeout(WAIT_FOR_PLACE):
                    await self.places.acquire()
            except TimeoutError:
                overloaded = Overloaded("This server is overloaded. Try again in a moment.", retry_after=1)
                await problem_response(overloaded, scope)(scope, receive, send)
                return
            except asyncio.CancelledError:
                exchange = exchange_of(scope)
                if exchange.aborted_by is None or exchange.client_left:
                    raise
                await problem_response(exchange.aborted_by, scope)(scope, receive, send)
                return
        else:
            await self.places.acquire()  # returns at once, without a task switch
        try:
            await self.app(scope, receive, send)
        finally:
            self.places.release()

    def _rejection(self, scope: Scope, *, is_probe: bool) -> AppError | HTTPException | None:
        head = len(scope["path"]) + len(scope["query_string"]) + len(b"".join(chain.from_iterable(scope["headers"])))
        if head > MAX_HEAD_BYTES:
            return HTTPException(431, f"Path and headers are larger than {MAX_HEAD_BYTES} bytes.")
        exchange, is_old = exchange_of(scope), scope["http_version"] == "1.0"
        names = [name for name, _ in scope["headers"]]
        if (hosts := names.count(b"host")) > 1 or (hosts == 0 and not is_old):
            return HTTPException(400, "A request needs one Host header.", CLOSE)  # RFC 9112, section 3.2
        if codings := names.count(b"transfer-encoding"):
            # RFC 9112, section 6.1; not its 501, since it is the client's fault
            coding = exchange.headers[b"transfer-encoding"].lower()
            if codings > 1 or is_old or coding != b"chunked":
                return HTTPException(400, "The only Transfer-Encoding here is chunked.", CLOSE)
        if is_probe:
            return None
        if self.drain.draining:
            return self.drain.error()
        return exchange.too_large() if exchange.declares_too_much else None


class ErrorBoundary:
    """Turns unhandled exceptions into a 500 problem, inside RequestContext and CORS, so that it gets their headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        try:
            await self.app(scope, receive, send)
            await exchange.finish()
        except asyncio.CancelledError:
            if exchange.aborted_by is None or exchange.client_left:
                raise
            await self._tell(exchange.aborted_by, exchange, scope, receive, send)
        except ClientDisconnect:
            exchange.client_left = True  # before its body was complete
        except Exception as error:
            failure = as_app_error(error)
            if failure is None:
                log.error("unexpected", request_id=exchange.request_id, **exception_fields(cause_of(error)))
            if not await self._tell(failure or AppError(), exchange, scope, receive, send):
                raise

    async def _tell(self, failure: AppError, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> bool:
        """Tell the client of an error, by a response or by an event stream's last event.

        Returns:
            Whether that could be done: any other response that has begun can only be cut off.
        """
        exchange.error = failure.code
        can_tell = exchange.status == 0 or (exchange.sends_events and not exchange.sent_all)
        if exchange.status == 0:
            await problem_response(failure, scope)(scope, receive, send)
        elif can_tell:
            await send({"type": "http.response.body", "body": error_event(failure, exchange.request_id)})
        return can_tell
