"""The application: create_app() puts it together; `app` is what an ASGI server imports."""

import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial

import structlog
from starlette.middleware import Middleware

from app import own
from app.access.callers import Caller, CallerKeys
from app.config import Settings
from app.environment import exit_if_settings_are_wrong, find_database, load_settings, unknown_variables, with_own
from app.http.application import App, telemetry_config
from app.http.bodies import BodyMemory
from app.http.cors import CORS
from app.http.draining import Drain
from app.http.problems import install_problem_handlers
from app.http.routing import ExactPaths
from app.llm.client import LLMClient
from app.llm.logged_calls import LoggedCalls
from app.llm.own_model import connect
from app.llm.upstreams import Upstreams
from app.middleware import PROBES, ErrorBoundary, LoadShedding, RequestContext
from app.routers import chat, embeddings, health, messages, models, playground, responses
from app.routers import metrics as metrics_router
from app.routers.closed import Closed
from app.telemetry.logs import configure_logs, failures_logged
from app.telemetry.metrics import Metrics
from app.telemetry.metrics_port import metrics_port

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
    # Not by include_router, which would match each path twice.
    modules = (chat, embeddings, messages, database or responses)
    routes = [route for module in modules for route in module.router.routes]
    app = App(
        title=settings.name,
        description=settings.description,
        lifespan=lifespan,
        telemetry=telemetry_config(settings, silent=PROBES),
        redirect_slashes=False,  # behind a proxy that terminates TLS, a redirect would send the key over plain http
        openapi_url="/openapi.json" if docs else None,
        routes=routes,
        middleware=[
            Middleware(RequestContext, drain=drain, metrics=metrics, max_body_bytes=settings.max_body_bytes),
            Middleware(CORS, origins=settings.cors_origins, credentials=settings.cors_credentials),
            Middleware(LoadShedding, drain=drain, max_in_flight=settings.max_in_flight),
            Middleware(ErrorBoundary),
            *getattr(own, "middleware", ()),
            Middleware(ExactPaths, routes=routes),
        ],
    )
    own_models = getattr(own, "models", {})
    upstreams = Upstreams(settings, metrics=metrics, own=partial(connect, models=own_models, app=app))
    demos = frozenset(target.name for target in upstreams.targets.values() if target.adapter == "demo")
    app.state.settings = settings
    app.state.drain = drain
    app.state.bodies = BodyMemory(settings.max_body_memory)
    app.state.keys = CallerKeys(settings.callers)
    app.state.jwt_auth = None
    app.state.anonymous = Caller("anonymous", demos, anonymous=True)
    app.state.metrics = metrics
    app.state.upstreams = upstreams
    app.state.llm = LLMClient(upstreams, totals=LoggedCalls())
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
    for router in getattr(own, "routers", ()):
        app.include_router(Closed(router))
    app.public = list(getattr(own, "public_routers", ()))
    for router in app.public:  # after the others: one of them may take every path
        app.include_router(router)
    for router in [playground.start_page] if has_playground else ():  # unless the team has a page there
        app.include_router(router)
    return app


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
    port = state.settings.metrics_port if state.settings.metrics else None
    own_lifespan = getattr(own, "lifespan", None)
    async with (
        failures_logged(),
        state.metrics.deferred.open(),
        state.upstreams,
        metrics_port(port, state.metrics) if port else nullcontext(),
        state.database.open(app) if state.database else nullcontext(),
        own_lifespan(app) if own_lifespan else nullcontext(),
    ):
        state.drain.install()
        gc.freeze()  # what exists now lives until the end, so no garbage collection needs to look at it
        gc.set_threshold(10_000)  # Python's own 700 to 2,000 are fewer objects than some requests make
        try:
            yield
        finally:
            gc.unfreeze()
            state.drain.uninstall()


with exit_if_settings_are_wrong():
    app = create_app()
