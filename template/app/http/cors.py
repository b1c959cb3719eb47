"""CORS: Starlette's middleware, with our own body for a refused preflight request."""

from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.exchange import exchange_of
from app.http.problems import problem_response

EXPOSED_HEADERS = [
    *("X-Request-ID", "Request-ID", "X-Model", "X-Left-Out", "X-Counted-By", "X-Cost-USD"),
    *("Retry-After", "X-Should-Retry"),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
]


class CORS(CORSMiddleware):
    """Starlette's, but a request without `Origin` passes at once where every origin is allowed.

    Args:
        app: the application inside.
        origins: which websites may call; `*` is every one.
        credentials: whether browsers may send cookies.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], *, credentials: bool) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_credentials=credentials,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = exchange_of(scope).headers
        origin = headers.get(b"origin")
        if origin is None and self.allow_all_origins:
            await self.app(scope, receive, send)  # not from a browser, and the response varies by nothing
        elif origin is not None and self._is_preflight(scope) and not self.is_allowed_origin(origin.decode("latin-1")):
            refusal = HTTPException(400, "This website may not call here (setting cors_origins).", {"Vary": "Origin"})
            await problem_response(refusal, scope)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    @staticmethod
    def _is_preflight(scope: Scope) -> bool:
        return scope["method"] == "OPTIONS" and b"access-control-request-method" in exchange_of(scope).headers
