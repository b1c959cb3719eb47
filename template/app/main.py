"""The application: create_app() puts it together; `app` is what a server imports."""

import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware import Middleware

from app import own
from app.callers import Caller, Keys
from app.config import Settings, SettingsError
from app.cors import CORS
from app.draining import Drain
from app.environment import load_settings, unknown_variables
from app.llm.client import LLMClient
from app.logs import configure_logs
from app.metrics import Metrics
from app.middleware import ALWAYS_ANSWERED, LastResort, Refusals, RequestContext
from app.openapi import App
from app.problems import install_problem_handlers
from app.routers import chat, embeddings, health, models, playground
from app.routers import metrics as metrics_router
from app.tracing import check_sdk

if TYPE_CHECKING:
    from app.jwt_auth import JwtAuth

EXPOSED_HEADERS = [
    *("X-Request-ID", "X-Model", "Retry-After", "X-Should-Retry"),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
]


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application.

    Args:
        settings: None loads them from all sources.

    Raises:
        SettingsError: they are wrong.
    """
    settings = settings or load_settings()
    drain = Drain(0 if settings.dev else settings.shutdown_grace)  # a reload waits for nobody
    metrics = Metrics()
    docs = settings.api_docs or settings.dev
    app = App(
        title=settings.name,
        description=settings.description,
        lifespan=lifespan,
        telemetry=_telemetry(settings),
        redirect_slashes=False,  # behind a proxy that ends TLS, a redirect would send the key on in the clear
        openapi_url="/openapi.json" if docs else None,
        routes=[*chat.router.routes, *embeddings.router.routes],  # not included: that would match each path twice
        middleware=[
            Middleware(RequestContext, drain=drain, metrics=metrics, max_body_bytes=settings.max_body_bytes),
            Middleware(
                CORS,
                allow_origins=settings.cors_origins,
                allow_credentials=settings.cors_credentials,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
            ),
            Middleware(Refusals, drain=drain, max_in_flight=settings.max_in_flight),
            Middleware(LastResort),
            *own.middleware,
        ],
    )
    app.state.settings = settings
    app.state.drain = drain
    app.state.keys = Keys(settings.callers)
    app.state.jwt_auth = _jwt_auth(settings)
    app.state.metrics = metrics
    app.state.llm = LLMClient(settings, metrics=metrics)
    demos = frozenset(target.name for target in app.state.llm.targets.values() if target.way == "demo")
    app.state.anonymous = Caller("anonymous", demos, anonymous=True)
    app.state.started_at = int(time.time())
    install_problem_handlers(app)
    for module in (models, health):
        app.include_router(module.router)
    if settings.dev if settings.playground is None else settings.playground:
        app.include_router(playground.router)
    if settings.metrics:
        app.include_router(metrics_router.router)
    for router in own.routers:
        app.include_router(router)
    return app


def _telemetry(settings: Settings) -> TelemetryConfig:
    if not settings.telemetry:
        return {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    check_sdk()
    os.environ.setdefault("OTEL_SERVICE_NAME", settings.name)
    return {
        "tracing": True,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": True,
        "exclude": lambda scope: scope["path"] in ALWAYS_ANSWERED,  # probes and scrapes
    }


def _jwt_auth(settings: Settings) -> "JwtAuth | None":
    if settings.auth.jwt is None:
        return None
    from app.jwt_auth import JwtAuth

    return JwtAuth(settings.auth.jwt)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what the application needs while it runs, and warn of what is missing."""
    state = app.state
    configure_logs(state.settings)
    log = structlog.get_logger("app")
    if unknown := unknown_variables():
        log.warning("unknown APP_ variables are ignored", names=unknown)
    for target in state.llm.targets.values():
        if target.missing:
            log.warning("model is not configured", model=target.name, missing=target.missing)
    await state.llm.start()
    state.drain.install()
    gc.freeze()  # what is here now stays: no collection need look at it
    try:
        yield
    finally:
        gc.unfreeze()
        state.drain.uninstall()
        await state.llm.close()


try:
    app = create_app()
except SettingsError as error:
    raise SystemExit(f"Settings: {error}") from None
