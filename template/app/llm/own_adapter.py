"""The adapter for the team's own models: functions of app/own.py, served under names of the model table."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import structlog

from app.access.callers import Caller
from app.config import SettingsError
from app.errors import AppError, InvalidRequest, OwnModelFailed, ProviderError
from app.llm.adapter import Adapter
from app.llm.call import Call, CallTotals
from app.llm.sse import DONE
from app.llm.stream_state import StreamState
from app.llm.targets import Target
from app.llm.tool_loop import Done, TextDelta, Turn
from app.llm.tools import ToolCall, ToolResult
from app.llm.usage import DETAILS
from app.models import ChatChunk, ChatRequest
from app.telemetry.logs import exception_fields
from app.telemetry.tracing import keep_current

Answer = Callable[[ChatRequest, Caller | None, CallTotals], AsyncGenerator[Any, None]]
"""Answers a request for a caller; its calls of other models are added to the totals."""
MOST_DEEP = 8
"""Own models that may stand within each other: one that calls itself would never end."""
REASONS = ("stop", "length", "content_filter", "tool_calls")

log = structlog.get_logger("app.own")


class Own(Adapter):
    """Answers by the team's functions. What they use up at other models is the answer's usage.

    Args:
        functions: by the names that stand behind `own/` in the model table.
        targets: the rows of the model table that lead to one.

    Raises:
        SettingsError: a row leads to no function.
    """

    def __init__(self, functions: Mapping[str, Answer], targets: Sequence[Target]) -> None:
        self._functions = functions
        for target in targets:
            if target.model not in functions:
                there = f"in `models` ({', '.join(functions) or 'none'})"
                raise SettingsError(f"models.{target.name}: app/own.py has no model {target.model!r} {there}")

    async def complete(self, call: Call, target: Target) -> dict[str, Any]:
        """Return a chat completion; arguments as in `Direct.complete`.

        Raises:
            OwnModelFailed: the function raised an exception that is none of ours.
            AppError: what the function raised.
        """
        turn = Turn()
        totals = call.inner[target.name] = CallTotals()
        async with aclosing(self._choices(call, target, totals)) as choices:
            async for choice, _ in choices:
                turn.add(ChatChunk.model_validate({"model": target.name, "choices": [choice]}))
        message = {"refusal": None, **turn.message}
        answered = {"index": 0, "message": message, "logprobs": None, "finish_reason": turn.reason}
        return {**_head(target, "chat.completion"), "choices": [answered], "usage": _usage(totals)}

    async def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, None]:
        """Yield a stream's events, the usage chunk and `[DONE]` last; arguments and errors as in `complete`."""
        totals = call.inner[target.name] = CallTotals()
        head = _head(target, "chat.completion.chunk")
        async with aclosing(self._choices(call, target, totals)) as choices:
            async for choice, extra in choices:
                yield state.event({**head, **extra, "choices": [choice]})
        yield state.event({**head, "choices": [], "usage": _usage(totals)}) + DONE

    async def _choices(
        self, call: Call, target: Target, totals: CallTotals
    ) -> AsyncGenerator[tuple[dict[str, Any], dict[str, Any]], None]:
        """Yield a chunk's choice for each event of the function, and what the chunk has beside it.

        The last one has the finish reason.
        """
        if (call.fields.get("n") or 1) > 1:
            raise InvalidRequest(f"Model {target.name!r} gives one choice: leave out n.", param="n")
        begin, reason, called = True, "stop", False
        async with aclosing(self._events(call, target, totals)) as events:
            async for event in events:
                if begin:  # not earlier: until the function's first event, a fallback may answer
                    begin = False
                    yield _choice({"role": "assistant", "content": ""}), {}
                if isinstance(event, str):
                    yield _choice({"content": event}), {}
                elif isinstance(event, TextDelta):
                    yield _choice({"content": event.text}), {}
                elif isinstance(event, ToolCall | ToolResult):  # not the client's tools: it has nothing to call
                    yield _choice({}), {"tool_event": event.model_dump()}
                elif isinstance(event, Done):
                    reason = event.reason if event.reason in REASONS else "length"
                elif isinstance(event, ChatChunk):
                    for choice in event.choices[:1]:
                        reason = choice.finish_reason or reason
                        called = called or bool(choice.delta.tool_calls)
                        yield _choice(choice.delta.model_dump(exclude_unset=True, exclude={"role"})), {}
                else:
                    raise TypeError(f"own model {target.model!r} yielded {type(event).__name__}")
        yield _choice({}, "tool_calls" if called else reason), {}

    async def _events(self, call: Call, target: Target, totals: CallTotals) -> AsyncGenerator[Any, None]:
        """Yield what the function yields, within the call's time limit."""
        call.deadlines.start_answer(target.name)
        request = ChatRequest.model_validate(target.fields(call.fields))
        asked_by = call.caller or Caller("app")
        if asked_by.depth == MOST_DEEP:
            log.error("own models call each other without end", model=target.name, deep=MOST_DEEP)
            raise OwnModelFailed(f"Model {target.name!r} failed. Search the logs for the request id.")
        # This call keeps the limits already. What it costs is charged call by call, to its budgets as well.
        spenders = [("caller", asked_by.name, asked_by.limits), ("model", target.name, target.entry)]
        budgets = tuple((kind, name, limits.money) for kind, name, limits in spenders if limits and limits.money)
        depth = asked_by.depth + 1
        caller = replace(asked_by, models=None, limits=None, budgets=(*asked_by.budgets, *budgets), depth=depth)
        limit, in_span = call.deadlines.limit(), keep_current()
        try:
            async with aclosing(self._functions[target.model](request, caller, totals)) as events:
                while True:
                    limit = call.deadlines.limit()
                    async with limit:
                        try:
                            with in_span():
                                event = await anext(events)
                        except StopAsyncIteration:
                            return
                    yield event
        except ProviderError as error:
            error.retry = False  # it has been tried again where it came from
            raise
        except AppError as error:
            error.said_by_own_model = True
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise call.deadlines.expired() from None
            log.error("own model failed", model=target.name, **exception_fields(error))
            raise OwnModelFailed(f"Model {target.name!r} failed. Search the logs for the request id.") from None


def _head(target: Target, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": target.name,
    }


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


def _usage(totals: CallTotals) -> dict[str, Any]:
    asked, answered = totals.prompt_tokens, totals.completion_tokens
    details = {group: {name: totals.details.get(name, 0)} for group, name in DETAILS.items()}
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered, **details}
