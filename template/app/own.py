"""Yours: what the template's updates never change. docs/own-endpoints.md shows what goes where."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter
from starlette.middleware import Middleware

from app.config import Group
from app.http.application import App
from app.llm.own_model import OwnModel

routers: list[APIRouter] = []
"""Behind a key, like the service's own routes."""

public_routers: list[APIRouter] = []
"""Open to everybody."""

middleware: list[Middleware] = []
"""The first one wraps the others. The service's own middleware wraps them all."""

models: dict[str, OwnModel] = {}
"""Your code as a model: `upstream = "own/NAME"` in the model table leads to the function NAME."""


class OwnSettings(Group):
    """The table `[own]` of settings.toml, and `APP_OWN__...` variables. Endpoints get it as `Config.own`."""


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    """Open what your code needs while the application runs, and close it."""
    yield
