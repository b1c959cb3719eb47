"""The application: create_app() puts it together; `app` is what an ASGI server imports."""

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial

import structlog
from fastapi.telemetry import TelemetryConfig
from starlette.middleware import Middleware

from app import own
from app.access.callers import Caller, CallerKeys
from app.config import Settings, SettingsError
from app.environment import find_database, load_settings, unknown_variables, with_own
from app.http.application import App
from app.http.bodies import BodyMemory
from app.http.cors import CORS
from app.http.draining import Drain
from app.http.problems import install_problem_handlers
from app.llm.client import LLMClient
from app.llm.own_model import connect
from app.llm.upstreams import Upstreams
from app.middleware import PROBES, ErrorBoundary, LoadShedding, RequestContext
from app.routers import chat, embeddings, health, messages, models, playground, responses
from app.routers import metrics as metrics_router
from app.routers.closed import Closed, include_public
from app.telemetry.logs import configure_logs
from app.telemetry.metrics import Metrics
from app.telemetry.metrics_port import metrics_port
from app.telemetry.tracing import check_exporter

EXPOSED_HEADERS = [
    *("X-Request-ID", "X-Model", "X-Left-Out", "X-Counted-By", "Retry-After", "X-Should-Retry"),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
]

GIVE_UP = 3
"""The exit code by which a worker tells uvicorn's supervisor that it is of no use to start it again."""

log = structlog.get_logger("app")


def create_app(settings: Settings | None = None) -> App:
    """Return the application.

    Args:
        settings: None loads them from all sources.

    Raises:
        SettingsError: the settings are wrong.
    """
    settings = with_own(settings or load_settings(), getattr(own, "OwnSettings", None))
    drain = Drain(0 if settings.dev else settings.shutdown_grace)  # a reload does not wait
    metrics = Metrics()
    database = find_database(settings)
    docs = settings.api_docs or settings.dev
    app = App(
        title=settings.name,
        description=settings.description,
        lifespan=lifespan,
        telemetry=_telemetry(settings),
        redirect_slashes=False,  # behind a proxy that terminates TLS, a redirect would send the key over plain http
        openapi_url="/openapi.json" if docs else None,
        routes=[  # include_router would match each path twice
            route
            for router in (chat.router, embeddings.router, messages.router, (database or responses).router)
            for route in router.routes
        ],
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
            Middleware(LoadShedding, drain=drain, max_in_flight=settings.max_in_flight),
            Middleware(ErrorBoundary),
            *getattr(own, "middleware", ()),
        ],
    )
    own_models = getattr(own, "models", {})
    upstreams = Upstreams(settings, metrics=metrics, own=partial(connect, models=own_models))
    demos = frozenset(target.name for target in upstreams.targets.values() if target.adapter == "demo")
    app.state.settings = settings
    app.state.drain = drain
    app.state.bodies = BodyMemory(settings.max_body_memory)
    app.state.keys = CallerKeys(settings.callers)
    app.state.jwt_auth = None
    app.state.anonymous = Caller("anonymous", demos, anonymous=True)
    app.state.metrics = metrics
    app.state.upstreams = upstreams
    app.state.llm = LLMClient(upstreams)
    app.state.database = database
    app.state.started_at = int(time.time())
    if settings.auth.jwt:
        from app.access.jwt_auth import JwtAuth

        app.state.jwt_auth = JwtAuth(settings.auth.jwt, max_waiting=max(1, settings.max_in_flight // 2))
    install_problem_handlers(app)
    for module in (models, health):
        app.include_router(module.router)
    has_playground = settings.dev if settings.playground is None else settings.playground
    if has_playground:
        app.include_router(playground.router)
    if settings.metrics:
        app.include_router(metrics_router.router)
    include_public(app, getattr(own, "public_routers", ()))
    for router in map(Closed, getattr(own, "routers", ())):
        app.include_router(router)
    return app


def _telemetry(settings: Settings) -> TelemetryConfig:
    if not settings.telemetry:
        return {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    check_exporter(os.environ)
    os.environ.setdefault("OTEL_SERVICE_NAME", settings.name)
    return {
        "tracing": True,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": True,
        "exclude": lambda scope: scope["path"] in PROBES,
    }


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    """Open what the application needs while it runs, and warn of what is missing."""
    state = app.state
    configure_logs(state.settings)
    if unknown := unknown_variables():
        log.warning("unknown APP_ variables are ignored", names=unknown)
    for target in state.upstreams.targets.values():
        if target.missing:
            log.warning("model is not configured", model=target.name, missing=target.missing)
    settings, own_lifespan = state.settings, getattr(own, "lifespan", None)
    async with (
        state.upstreams,
        metrics_port(settings.metrics_port if settings.metrics else None, state.metrics),
        state.database.open(app) if state.database else nullcontext(),
        own_lifespan(app) if own_lifespan else nullcontext(),
    ):
        state.drain.install()
        gc.freeze()  # what exists now lives until the end, so no garbage collection needs to look at it
        try:
            yield
        finally:
            gc.unfreeze()
            state.drain.uninstall()


try:
    app = create_app()
except SettingsError as error:
    sys.stderr.write(f"Settings: {error}\n")
    sys.exit(GIVE_UP if multiprocessing.parent_process() else 1)
