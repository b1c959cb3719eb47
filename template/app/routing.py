"""Routes whose endpoints read and write bytes themselves."""

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class BytesRoute(APIRoute):
    """A route that FastAPI documents and does nothing else for: no dependencies, no parsing, no exit stacks.

    Those cost half as much as a byte proxy's whole request. The endpoint takes the request and returns a response.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the endpoint."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # 405
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
