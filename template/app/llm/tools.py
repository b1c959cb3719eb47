"""Tools: functions that a model may call. Arguments are validated, time is limited, errors are told to the model."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, create_model
from pydantic_core import from_json, to_json, to_jsonable_python

from app.errors import MOST_ERRORS, AppError
from app.telemetry.logs import exception_fields

Tool = Callable[..., Any]
"""A function whose arguments have types. One that is not async runs in a thread. Its docstring is for the model."""

log = structlog.get_logger("app.tools")


class ToolError(Exception):
    """Raised by a tool: its words are told to the model. Of any other exception, the model is told the type alone."""


class Event(BaseModel):
    model_config = ConfigDict(frozen=True)


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


@dataclass(frozen=True, slots=True)
class SchemaTool:
    """A tool that is no typed function, such as one of an MCP server.

    Attributes:
        name: its name.
        description: what the model is told about it.
        parameters: JSON schema of its arguments.
        call: takes the arguments and returns the result; may raise what a function may raise.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    call: Callable[[dict[str, Any]], Awaitable[Any]]


class Tools:
    """What a model may call.

    Args:
        tools: typed functions, and tools with a schema, each under its own name.
        timeout: seconds that each call may take.

    Raises:
        TypeError: an argument has no type, or two tools have one name.
    """

    def __init__(self, tools: Sequence[Tool | SchemaTool], timeout: float) -> None:
        self._timeout = timeout
        described = [tool if isinstance(tool, SchemaTool) else _described(tool) for tool in tools]
        self._tools = {tool.name: tool for tool in described}
        if len(self._tools) < len(tools):
            raise TypeError("two tools have the same name")
        self.schemas: list[dict[str, Any]] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
            for tool in described
        ]
        """The tools as OpenAI's request describes them."""

    async def call(self, asked: ToolCall) -> ToolResult:
        """Make a call, and return its result, or its error as the model is told it. Never raises one."""
        try:
            async with asyncio.timeout(self._timeout):
                result = to_jsonable_python(await self._call(asked), fallback=str)
                to_json(result)  # it may have a text in it that can't be sent
        except ToolError as error:
            return _failed(asked, str(error))
        except AppError as error:
            return _failed(asked, error.message)
        except TimeoutError:
            return _failed(asked, f"{asked.name} took longer than {self._timeout:g} s.")
        except Exception as error:
            log.error("a tool failed", tool=asked.name, **exception_fields(error))
            return _failed(asked, f"{asked.name} failed: {type(error).__name__}.")
        return ToolResult(id=asked.id, name=asked.name, result=result)

    async def _call(self, asked: ToolCall) -> Any:
        tool = self._tools.get(asked.name)
        if tool is None:
            raise ToolError(f"There is no tool {asked.name!r}. There are: {', '.join(self._tools)}.")
        try:
            given = from_json(asked.arguments or "{}")
        except ValueError:
            raise ToolError("The arguments are not valid JSON.") from None
        return await tool.call(given)


def _failed(asked: ToolCall, words: str) -> ToolResult:
    return ToolResult(id=asked.id, name=asked.name, result=words, is_error=True)


def faults_in(error: ValidationError) -> str:
    """Return where a model's JSON does not fit its schema, and why. Of very many faults, none is told."""
    if error.error_count() > MOST_ERRORS:  # each takes a kilobyte
        return f"more than {MOST_ERRORS} values are invalid"
    faults = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in faults)


def _described(function: Tool) -> SchemaTool:
    """Return a function as a tool: its arguments are validated by their types."""
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        open_ended = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if open_ended or parameter.annotation is parameter.empty:
            raise TypeError(f"tool {function.__name__!r}: argument {name!r} needs a type")
        fields[name] = (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
    kind = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)

    async def call(given: dict[str, Any]) -> Any:
        try:
            validated = kind.model_validate(given)
        except ValidationError as error:
            raise ToolError(f"The arguments do not fit: {faults_in(error)}.") from None
        arguments = {name: getattr(validated, name) for name in fields}
        if inspect.iscoroutinefunction(function):
            return await function(**arguments)
        return await asyncio.to_thread(function, **arguments)

    return SchemaTool(function.__name__, inspect.getdoc(function) or "", kind.model_json_schema(), call)
