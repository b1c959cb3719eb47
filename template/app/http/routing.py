"""BytesRoute: a route whose endpoint reads and writes bytes itself; and how it is found."""

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.exchange import exchange_of
from app.http.problems import as_app_error, problem_response


class BytesRoute(APIRoute):
    """A route that FastAPI documents, and for which it does nothing else: no dependencies, no parsing, no exit stacks.

    These cost a third of a whole request of a byte proxy. The endpoint is async, takes the request and returns a
    response.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if self.dependencies:
            raise ValueError(f"{path}: a BytesRoute runs no dependencies")

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the endpoint."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # 405
            return
        exchange_of(scope).reads_body = True
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class ExactPaths:
    """The innermost middleware: it calls a BytesRoute by its exact path, before FastAPI looks for a route.

    What FastAPI does for every route, such as looking through all patterns, takes 7 % of a whole request. Traces get
    the names of their routes there, so with them each request goes through FastAPI.

    Args:
        app: the application inside: FastAPI's.
        routes: those among which BytesRoutes are found.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        found = [route for route in routes if isinstance(route, BytesRoute)]
        self.routes = {(method, route.path): route for route in found for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get((scope.get("method", ""), scope.get("path", "")))
        if route is None or scope.get("root_path") or "fastapi.telemetry" in scope:
            await self.app(scope, receive, send)
            return
        scope["route"] = route
        try:
            await route.handle(scope, receive, send)
        except Exception as error:
            response = _response_to(error, scope)
            if response is None:
                raise
            error.__traceback__ = None  # its frames hold the request's body
            await response(scope, receive, send)


def _response_to(error: Exception, scope: Scope) -> Response | None:
    """Return the response for one of our errors, if none has begun.

    No variable of the caller holds the error: with its traceback, that would be a circle, which is freed late.
    """
    failure = as_app_error(error)
    return None if failure is None or exchange_of(scope).status else problem_response(failure, scope)
