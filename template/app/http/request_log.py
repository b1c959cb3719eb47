"""What is told of every request when it has ended: one log line, and its metrics."""

from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.types import Scope

from app.http.exchange import Exchange
from app.quotas import MICRO
from app.telemetry.logs import InfoLog
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import trace_id


class RequestLog:
    """Writes a log line for each request, and counts it.

    Args:
        metrics: counts every request.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log: InfoLog | None = None  # made at the first request: by then the logs are configured
        self._lines: list[str] = []

    def write(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        """Count a request that has ended, and write its line: now, or a little later, with those of other requests."""
        self._metrics.deferred.add(partial(copy_context().run, self._tell, scope, exchange, seconds, datetime.now(UTC)))

    def _tell(self, scope: Scope, exchange: Exchange, seconds: float, ended_at: datetime) -> None:
        totals = exchange.totals
        route = _route_of(scope)
        status = 499 if exchange.client_left else exchange.status
        models = totals.models
        model = models[0] if len(models) == 1 else "several" if models else "none"
        self._metrics.requests(route, status, model).observe(seconds)
        if exchange.client_left:
            self._metrics.disconnects(route).inc()
        elif exchange.error and status < HTTPStatus.BAD_REQUEST:
            self._metrics.stream_errors(route, exchange.error).inc()
        line: dict[str, Any] = {
            "event": "request",
            "method": scope["method"],
            "path": scope["path"][:256],
            "status": status,
            "ms": round(seconds * 1000, 2),
            "request_id": exchange.request_id,
            "timestamp": ended_at,
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
        self._log = self._log or InfoLog("app.access")
        if not self._lines:
            self._metrics.deferred.add(self._write_lines)
        self._lines += self._log.render(line)

    def _write_lines(self) -> None:
        lines, self._lines = self._lines, []
        if self._log:
            self._log.write(lines)


def _route_of(scope: Scope) -> str:
    """Return the path of the route that has handled a request, with its variable parts as they were declared."""
    included = (scope.get("fastapi") or {}).get("effective_route_context")  # FastAPI's, of a router that was included
    inner = getattr(included, "starlette_route", None) or included or scope.get("route")
    path: str | None = getattr(inner, "path", None)
    return path or "none"
