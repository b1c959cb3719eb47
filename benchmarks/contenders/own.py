"""The app/own.py of the contender with an own model: a function that passes on what a direct model says."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from app.config import Group
from app.http.application import App
from app.llm.client import LLMClient
from app.llm.own_model import OwnModel
from app.models import ChatChunk, ChatRequest
from fastapi import APIRouter
from starlette.middleware import Middleware


async def assistant(request: ChatRequest, llm: LLMClient) -> AsyncGenerator[str | ChatChunk, None]:
    if not request.stream:
        answer = await llm.complete(model="gpt-4o", messages=request.messages)
        yield answer.content or ""
        return
    async for chunk in llm.stream(model="gpt-4o", messages=request.messages):
        yield chunk


routers: list[APIRouter] = []
public_routers: list[APIRouter] = []
middleware: list[Middleware] = []
models: dict[str, OwnModel] = {"assistant": assistant}


class OwnSettings(Group):
    """No settings."""


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    yield
