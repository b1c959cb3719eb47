"""Yours: your routers and your middleware. The template's updates never touch this file."""

from fastapi import APIRouter
from starlette.middleware import Middleware

routers: list[APIRouter] = []
"""Included after the service's own routes."""

middleware: list[Middleware] = []
"""The first is the outermost; all stand inside the service's own."""
