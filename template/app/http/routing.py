"""BytesRoute: a route whose endpoint reads and writes bytes itself."""

from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


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
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
