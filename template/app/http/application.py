"""App: FastAPI with a typed `state`, and with an OpenAPI page that knows about keys."""

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import State
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.callers import Caller, CallerKeys
from app.config import Settings, SettingsError
from app.environment import Database
from app.http.bodies import BodyMemory
from app.http.draining import Drain
from app.llm.client import LLMClient
from app.llm.logged_calls import LoggedCalls
from app.llm.upstreams import Upstreams
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import check_exporter

if TYPE_CHECKING:
    from app.access.jwt_auth import JwtAuth  # which imports PyJWT; only a configured issuer needs it


class AppState(State):
    """What the application holds while it runs. A team may set further attributes.

    Attributes:
        settings: the settings that it was made with.
        drain: knows what is in flight.
        bodies: the memory of large bodies.
        keys: the callers of the table.
        jwt_auth: the issuer of tokens, if one is configured.
        anonymous: the caller without a key; it may use only the demo model.
        metrics: all metrics.
        upstreams: the models of the table.
        llm: a client of them for the application itself, outside any request.
        database: what is kept, in projects with `app/database/`.
        started_at: when the application was made, in seconds since 1970.
    """

    settings: Settings
    drain: Drain
    bodies: BodyMemory
    keys: CallerKeys
    jwt_auth: "JwtAuth | None"
    anonymous: Caller
    metrics: Metrics
    upstreams: Upstreams
    llm: LLMClient
    database: Database | None
    started_at: int


class App(FastAPI):
    """FastAPI whose OpenAPI page says that a key is needed, except where a route is open to all.

    Attributes:
        public: routers that need no key. Each is included too.
    """

    state: AppState
    public: Sequence[APIRouter] = ()

    def llm_for(self, caller: str) -> LLMClient:
        """Return a client of the models for code outside a request: a job, or what runs at the start.

        Its calls are limited and counted as the caller's. Each one writes a log line of its own.

        Args:
            caller: a name of the table of callers; with `--dev`, any name.

        Raises:
            SettingsError: there is no such caller.
        """
        found = self.state.keys.named(caller) or (Caller(caller) if self.state.settings.dev else None)
        if found is None:
            raise SettingsError(f"llm_for({caller!r}): there is no such caller in the table of callers")
        return LLMClient(self.state.upstreams, found, LoggedCalls())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.middleware_stack and not self.state.settings.telemetry:
            scope["app"] = self
            if self.root_path:
                scope["root_path"] = self.root_path
            await self.middleware_stack(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Return the middleware without what FastAPI puts around it: ErrorBoundary answers what nothing has handled."""
        stack: Any = super().build_middleware_stack()
        outermost: Any = self.user_middleware[0].cls
        stack = stack.app if isinstance(stack, ServerErrorMiddleware) else stack
        while not self.state.settings.telemetry and isinstance(outermost, type) and not isinstance(stack, outermost):
            stack = stack.app
        return cast(ASGIApp, stack)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI page."""
        page = super().openapi()
        page.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        page["security"] = [{"key": []}]
        public = [route for router in self.public for route in router.routes]
        for path, operations in get_openapi(title="public", version="", routes=public)["paths"].items():
            for method in operations:
                page["paths"][path][method].setdefault("security", [])
        return page


def state_of(request: HTTPConnection) -> AppState:
    """Return the state of the application that a request is for."""
    state: AppState = request.app.state
    return state


def telemetry_config(settings: Settings, silent: Collection[str]) -> TelemetryConfig:
    """Return how FastAPI traces requests.

    Args:
        settings: tell whether it does.
        silent: paths whose requests are not traced.

    Raises:
        SettingsError: OpenTelemetry can't work as it is set up.
    """
    if settings.telemetry:
        check_exporter(os.environ)
        os.environ.setdefault("OTEL_SERVICE_NAME", settings.name)
    return {
        "tracing": settings.telemetry,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": settings.telemetry,
        "exclude": lambda scope: scope["path"] in silent,
    }
