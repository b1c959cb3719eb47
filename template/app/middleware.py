"""Pure ASGI middleware. From the outside in: RequestContext, CORS, LoadShedding, ErrorBoundary, then the team's own."""

import asyncio
import time
from collections import deque

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import AppError, Overloaded
from app.http.draining import Drain
from app.http.exchange import Exchange, exchange_of
from app.http.heads import head_error
from app.http.problems import error_event, problem_response, told_error
from app.http.request_log import RequestLog
from app.telemetry.metrics import Metrics

PROBES = ("/health", "/ready", "/metrics")
"""Paths that are answered even while the server is draining or overloaded."""
WAIT_FOR_PLACE = 0.5
"""Seconds that a request waits when `max_in_flight` is reached."""


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
        self.request_log = RequestLog(metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        exchange = scope["app.exchange"] = Exchange(scope, receive, send, self.max_body_bytes)
        self.drain.in_flight.add(exchange)
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
            self.request_log.write(scope, exchange, time.perf_counter() - started)
            if not self.drain.in_flight:
                self.metrics.deferred.flush()  # nobody is held up
            del scope["app.exchange"]  # breaks a reference cycle, so that no garbage collection is needed


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
        self.free = max_in_flight
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_probe = scope["path"] in PROBES
        rejection = self._rejection(scope, is_probe=is_probe)
        if not rejection and not is_probe:
            if self.free:
                self.free -= 1
            else:
                rejection = await self._wait(exchange_of(scope))
        if rejection or is_probe:
            await (problem_response(rejection, scope) if rejection else self.app)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self._leave()

    async def _wait(self, exchange: Exchange) -> AppError | None:
        """Wait for a place; return why there was none in time."""
        place = asyncio.get_running_loop().create_future()
        self.waiting.append(place)
        try:
            async with asyncio.timeout(WAIT_FOR_PLACE):
                await place
        except (TimeoutError, asyncio.CancelledError) as error:
            if not place.cancelled():
                self._leave()  # it came too late
            elif place in self.waiting:
                self.waiting.remove(place)
            if isinstance(error, TimeoutError):
                return Overloaded("This server is overloaded. Try again in a moment.", retry_after=1)
            if exchange.aborted_by is None or exchange.client_left:
                raise
            return exchange.aborted_by
        return None

    def _leave(self) -> None:
        """Give a place to who has waited longest."""
        while self.waiting:
            if not (place := self.waiting.popleft()).done():
                place.set_result(None)
                return
        self.free += 1

    def _rejection(self, scope: Scope, *, is_probe: bool) -> AppError | HTTPException | None:
        error = head_error(scope)
        if error or is_probe:
            return error
        if self.drain.draining:
            return self.drain.error()
        exchange = exchange_of(scope)
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
            # In no variable: an error that refers to this frame, and this frame to it, is freed late, with the body.
            if not await self._tell(told_error(error, exchange.request_id), exchange, scope, receive, send):
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
