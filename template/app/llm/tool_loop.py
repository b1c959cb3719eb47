"""A bounded loop of a model and tools: the model asks for calls, they are made, it is told the results, and so on.

Tools are plain typed Python functions. Deeper agents are other libraries' business: docs/own-endpoints.md shows one.
"""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, create_model
from pydantic_core import to_json, to_jsonable_python

from app.errors import AppError
from app.models import ChatChunk, Usage, as_sent
from app.telemetry.logs import exception_fields

Tool = Callable[..., Any]
"""A function whose arguments have types. One that is not async runs in a thread. Its docstring is for the model."""

log = structlog.get_logger("app.tools")


class ToolError(Exception):
    """Raised by a tool: its words are told to the model. Of any other exception, the model is told the type alone."""


T = TypeVar("T")


class Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class TextDelta(Event):
    """A piece of the model's text."""

    type: Literal["text"] = "text"
    text: str


class ToolCall(Event):
    """The model asks for a call. What it asks for is not validated yet."""

    type: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    arguments: str


class ToolResult(Event):
    """A call has ended. `result` is what the model is told."""

    type: Literal["tool_result"] = "tool_result"
    id: str
    name: str
    result: JsonValue
    is_error: bool = False


class Done(Event):
    """The loop has ended.

    Attributes:
        reason: the model's own finish reason, or which bound was reached.
        text: the model's last text.
        turns: how often the model was called.
        usage: the sum of all its calls.
        messages: the conversation with all that was added to it, to be stored or sent again.
    """

    type: Literal["done"] = "done"
    reason: str
    text: str
    turns: int
    usage: Usage
    messages: list[dict[str, Any]]


RunEvent = TextDelta | ToolCall | ToolResult | Done


class Tools:
    """Functions that a model may call.

    Args:
        functions: with typed arguments, each under its own name.
        timeout: seconds that each call may take.

    Raises:
        TypeError: an argument has no type, or two functions have one name.
    """

    def __init__(self, functions: Sequence[Tool], timeout: float) -> None:
        self._timeout = timeout
        self._functions = {function.__name__: function for function in functions}
        if len(self._functions) < len(functions):
            raise TypeError("two tools have the same name")
        self._arguments = {name: _arguments_of(function) for name, function in self._functions.items()}

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as OpenAI's request describes them."""
        return [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": inspect.getdoc(self._functions[name]) or "",
                    "parameters": arguments.model_json_schema(),
                },
            }
            for name, arguments in self._arguments.items()
        ]

    async def call(self, asked: ToolCall) -> ToolResult:
        """Make a call, and return its result, or its error as the model is told it. Never raises one."""
        try:
            async with asyncio.timeout(self._timeout):
                result = await self._call(asked)
        except ToolError as error:
            return self._failed(asked, str(error))
        except AppError as error:
            return self._failed(asked, error.message)
        except TimeoutError:
            return self._failed(asked, f"{asked.name} took longer than {self._timeout:g} s.")
        except Exception as error:
            log.error("a tool failed", tool=asked.name, **exception_fields(error))
            return self._failed(asked, f"{asked.name} failed: {type(error).__name__}.")
        return ToolResult(id=asked.id, name=asked.name, result=to_jsonable_python(result, fallback=str))

    async def _call(self, asked: ToolCall) -> Any:
        if asked.name not in self._functions:
            raise ToolError(f"There is no tool {asked.name!r}. There are: {', '.join(self._functions)}.")
        function, kind = self._functions[asked.name], self._arguments[asked.name]
        try:
            given = kind.model_validate_json(asked.arguments or "{}")
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
            raise ToolError(f"The arguments do not fit: {'; '.join(faults)}.") from None
        arguments = {name: getattr(given, name) for name in kind.model_fields}
        if inspect.iscoroutinefunction(function):
            return await function(**arguments)
        return await asyncio.to_thread(function, **arguments)

    @staticmethod
    def _failed(asked: ToolCall, words: str) -> ToolResult:
        return ToolResult(id=asked.id, name=asked.name, result=words, is_error=True)


def _arguments_of(function: Tool) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.annotation is parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise TypeError(f"tool {function.__name__!r}: argument {name!r} needs a type")
        fields[name] = (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
    return create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)


class Turn:
    """One answer of the model, joined from its chunks."""

    def __init__(self) -> None:
        self.text = ""
        self.reason = "stop"
        self.usage: Usage | None = None
        self._calls: list[dict[str, Any]] = []
        self._places: dict[Any, int] = {}

    def add(self, chunk: ChatChunk) -> None:
        """Add a chunk. A tool call comes in pieces: its id and name once, its arguments bit by bit."""
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices[:1]:
            self.text += choice.delta.content or ""
            self.reason = choice.finish_reason or self.reason
            for piece in choice.delta.tool_calls or ():
                self._add_call(piece)

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        key = piece.get("index")
        if key is None:  # some providers send whole calls without an index
            key = piece.get("id") or next(reversed(self._places), 0)
        place = self._places.get(key, -1)
        if place < 0 or (piece.get("id") and self._calls[place]["id"] not in ("", piece["id"])):
            place = self._places[key] = len(self._calls)
            self._calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call, function = self._calls[place], piece.get("function") or {}
        call |= {name: value for name, value in piece.items() if value and name not in ("index", "function")}
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, as the next request sends it."""
        calls = {"tool_calls": self._calls} if self._calls else {}
        return {"role": "assistant", "content": self.text or (None if calls else ""), **calls}

    @property
    def calls(self) -> list[ToolCall]:
        """What the model asks for."""
        return [ToolCall(id=call["id"], **call["function"]) for call in self._calls]


async def run(
    stream: Callable[..., AsyncGenerator[ChatChunk, None]],
    messages: Sequence[Any],
    tools: Tools,
    *,
    max_turns: int,
    seconds: float,
    **fields: Any,
) -> AsyncGenerator[RunEvent, None]:
    """Yield what happens while a model answers with tools, `Done` last. Closing it cancels what is going on.

    Args:
        stream: `LLMClient.stream`.
        messages: the conversation.
        tools: what the model may call.
        max_turns: how often the model is called at most, 1 or more.
        seconds: how long all of it may take.
        **fields: other fields of the requests.

    Raises:
        AppError: as in `LLMClient.stream`.
    """
    end = asyncio.get_running_loop().time() + seconds
    said = [as_sent(message) for message in messages]
    usage = Usage()
    turn, turns, reason = Turn(), 0, "max_turns"
    while turns < max_turns:
        turn, turns = Turn(), turns + 1
        options = {"tools": tools.schemas or None, "stream_options": {"include_usage": True}}
        try:
            async with aclosing(stream(messages=said, **options, **fields)) as chunks:
                while (chunk := await _until(end, anext(chunks, None))) is not None:
                    turn.add(chunk)
                    if chunk.content:
                        yield TextDelta(text=chunk.content)
        except TimeoutError:
            reason = "deadline"
            break
        usage = _sum(usage, turn.usage)
        said.append(turn.message)
        if not turn.calls:
            reason = turn.reason
            break
        for call in turn.calls:
            yield call
        results: dict[str, ToolResult] = {}
        async with aclosing(_results(tools, turn.calls, end)) as ended:
            async for result in ended:
                results[result.id] = result
                yield result
        for call in turn.calls:
            told = results[call.id].result if call.id in results else "Not finished: the time was over."
            content = told if isinstance(told, str) else to_json(told).decode()
            said.append({"role": "tool", "tool_call_id": call.id, "content": content})
        if len(results) < len(turn.calls):
            reason = "deadline"
            break
    yield Done(reason=reason, text=turn.text, turns=turns, usage=usage, messages=said)


async def _results(tools: Tools, calls: Sequence[ToolCall], end: float) -> AsyncGenerator[ToolResult, None]:
    """Make all calls at once; yield each result when it is there. Those that are not at the deadline are cancelled."""
    tasks = [asyncio.create_task(tools.call(call)) for call in calls]
    try:
        for ended in asyncio.as_completed(tasks):
            yield await _until(end, ended)
    except TimeoutError:
        return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until(end: float, result: Awaitable[T]) -> T:
    async with asyncio.timeout_at(end):
        return await result


def _sum(one: Usage, other: Usage | None) -> Usage:
    if other is None:
        return one
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return Usage(**{name: getattr(one, name) + getattr(other, name) for name in names})
