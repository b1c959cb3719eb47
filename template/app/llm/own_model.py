"""Your code as a model: with `models = {"support": support}` in app/own.py, `upstream = "own/support"` leads to it."""

import inspect
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from app.access.callers import Caller
from app.config import SettingsError
from app.errors import OwnCallError
from app.llm.call import CallTotals
from app.llm.client import LLMClient
from app.llm.own_adapter import Answer
from app.llm.tool_loop import RunEvent
from app.llm.upstreams import Upstreams
from app.models import ChatChunk, ChatRequest

Events = AsyncGenerator[str | ChatChunk | RunEvent, None]
OwnModel = Callable[[ChatRequest, LLMClient], Events] | Callable[[ChatRequest, LLMClient, Any], Events]
"""An async generator function: it gets the request and a client of all models, and yields its answer.

With a third argument, it gets the application too: its `state` has the settings, and what `lifespan` has opened.
It yields texts, chunks of `llm.stream` or events of `llm.run`. An AppError that it raises is its caller's answer.
"""


def connect(upstreams: Upstreams, models: Mapping[str, OwnModel], app: Any = None) -> dict[str, Answer]:
    """Return the team's functions as the adapter calls them.

    Args:
        upstreams: the models that the functions may call.
        models: the functions.
        app: the application.

    Raises:
        SettingsError: what stands in `models` can be no model.
    """
    return {name: _connected(name, model, upstreams, app) for name, model in models.items()}


def _connected(name: str, model: Any, upstreams: Upstreams, app: Any) -> Answer:
    """Return one function as the adapter calls it; it gets the application if it needs it."""
    is_wrong = inspect.iscoroutinefunction(model) or inspect.isgeneratorfunction(model) or not callable(model)
    needed = () if is_wrong else inspect.signature(model).parameters.values()
    count = sum(each.default is each.empty and each.kind in (0, 1) for each in needed)
    if count not in (2, 3):
        takes = "that yields, and takes a ChatRequest, an LLMClient and, if it likes, the App"
        raise SettingsError(f"`models` of app/own.py: {name!r} must be an async function {takes}")
    more = [app] if count == 3 else []

    def answer(request: ChatRequest, caller: Caller | None, totals: CallTotals) -> Events:
        events: Events = model(request, LLMClient(upstreams, caller, totals), *more)
        if not hasattr(events, "aclose"):
            raise OwnCallError(f"own model {name!r} returned {type(events).__name__}, and no async generator")
        return events

    return answer
