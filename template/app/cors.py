"""CORS: Starlette's, but for what it says to no browser, and for how it refuses."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.exchange import exchange_of
from app.problems import problem_response


class CORS(CORSMiddleware):
    """Starlette's, with our body for a preflight that is refused."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.allow_all_origins and b"origin" not in exchange_of(scope).headers:
            await self.app(scope, receive, send)  # from no browser: nothing to say, and nothing that varies
        else:
            await super().__call__(scope, receive, send)

    def preflight_response(self, request_headers: Any) -> Response:
        """Return the answer to a preflight request."""
        response = super().preflight_response(request_headers)
        return response if response.status_code == 200 else RefusedPreflight(response)


class RefusedPreflight(Response):
    """Says why in a problem details body, with the headers that Starlette chose."""

    def __init__(self, refused: Response) -> None:
        super().__init__(status_code=refused.status_code)
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = HTTPException(400, "This origin, method or header is not allowed here.")
        response = problem_response(error, scope)
        kept = {k: v for k, v in self._refused.headers.items() if not k.startswith("content-")}
        response.headers.update(kept)
        await response(scope, receive, send)
