"""Your code as a model: with `models = {"support": support}` in app/own.py, `upstream = "own/support"` leads to it."""

from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial

from app.access.callers import Caller
from app.llm.call import CallTotals
from app.llm.client import LLMClient
from app.llm.own_adapter import Answer
from app.llm.tool_loop import RunEvent
from app.llm.upstreams import Upstreams
from app.models import ChatChunk, ChatRequest

OwnModel = Callable[[ChatRequest, LLMClient], AsyncGenerator[str | ChatChunk | RunEvent, None]]
"""An async generator function: it gets the request and a client of all models, and yields its answer.

It yields texts, chunks of `llm.stream` or events of `llm.run`. An AppError that it raises is its caller's answer.
"""


def connect(upstreams: Upstreams, models: Mapping[str, OwnModel]) -> dict[str, Answer]:
    """Return the team's functions as the adapter calls them.

    Args:
        upstreams: the models that the functions may call.
        models: the functions.
    """
    return {name: partial(_answer, model, upstreams) for name, model in models.items()}


def _answer(
    model: OwnModel, upstreams: Upstreams, request: ChatRequest, caller: Caller | None, totals: CallTotals
) -> AsyncGenerator[str | ChatChunk | RunEvent, None]:
    return model(request, LLMClient(upstreams, caller, totals))
