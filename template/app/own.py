"""Yours: your routers and your middleware. The template's updates never change this file."""

from fastapi import APIRouter
from starlette.middleware import Middleware

routers: list[APIRouter] = []
"""Included after the service's own routes."""

middleware: list[Middleware] = []
"""The first one wraps the others. The service's own middleware wraps them all."""
