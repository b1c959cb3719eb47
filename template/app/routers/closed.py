"""The team's routes that need a key, whatever kind they are."""

from fastapi import APIRouter, Depends
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from app.dependencies import get_caller


async def check_key(connection: HTTPConnection) -> None:
    """Find the caller, once.

    Raises:
        Unauthorized, AuthUnavailable: as in `get_caller`.
    """
    if not connection.scope.get("app.key_is_checked"):
        await get_caller(connection)
        connection.scope["app.key_is_checked"] = True


class Closed(APIRouter):
    """A router behind a key: nothing in it runs before the caller is known.

    The check stands around the routes: mounted applications, Starlette's routes and a BytesRoute run no dependencies.
    It is a dependency too, for front ends, which are served around the router.

    Args:
        router: the team's.
    """

    def __init__(self, router: APIRouter) -> None:
        super().__init__(dependencies=[Depends(check_key)])
        self.include_router(router)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the caller, then handle the request; errors as in `check_key`."""
        await check_key(HTTPConnection(scope))
        await super().handle(scope, receive, send)
