"""A bounded loop of a model and tools: the model asks for calls, they are made, it is told the results, and so on.

Tools are plain typed Python functions. Deeper agents are other libraries' business: docs/own-endpoints.md shows one.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, TypeVar

from pydantic import Field
from pydantic_core import to_json

from app.llm.failures import unreadable
from app.llm.tools import Event, ToolCall, ToolResult, Tools
from app.models import ChatChunk, Usage, as_sent

T = TypeVar("T")


class TextDelta(Event):
    """A piece of the model's text."""

    type: Literal["text"] = "text"
    text: str


class Done(Event):
    """The loop has ended.

    Attributes:
        reason: the model's own finish reason, or which bound was reached.
        text: the model's last text.
        turns: how often the model was called.
        usage: the sum of all its calls.
        messages: the conversation with all that was added to it, to be stored or sent again. Not sent to browsers, nor
            by `model_dump`: it begins with your prompt.
    """

    type: Literal["done"] = "done"
    reason: str
    text: str
    turns: int
    usage: Usage
    messages: list[dict[str, Any]] = Field(exclude=True)


RunEvent = TextDelta | ToolCall | ToolResult | Done


class Turn:
    """One answer of the model, joined from its chunks."""

    def __init__(self) -> None:
        self.text = ""
        self.reason = "stop"
        self.usage = Usage()
        self._calls: list[dict[str, Any]] = []
        self._places: dict[Any, int] = {}
        self._token = secrets.token_hex(12)

    def add(self, chunk: ChatChunk) -> None:
        """Add a chunk. A tool call comes in pieces: its id and name once, its arguments bit by bit.

        Raises:
            ProviderError: a piece does not follow OpenAI's protocol.
        """
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices[:1]:
            self.text += choice.delta.content or ""
            self.reason = choice.finish_reason or self.reason
            try:
                for piece in choice.delta.tool_calls or ():
                    self._add_call(piece)
            except (AttributeError, TypeError):
                raise unreadable(chunk.model) from None

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
        call["function"]["name"] = str(function.get("name") or call["function"]["name"])
        arguments = function.get("arguments") or ""
        call["function"]["arguments"] += arguments if isinstance(arguments, str) else to_json(arguments).decode()

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, as the next request sends it."""
        calls = {"tool_calls": self._named} if self._calls else {}
        return {"role": "assistant", "content": self.text or (None if calls else ""), **calls}

    @property
    def calls(self) -> list[ToolCall]:
        """What the model asks for."""
        return [ToolCall(id=call["id"], **call["function"]) for call in self._named]

    @property
    def _named(self) -> list[dict[str, Any]]:
        """The calls, each with an id of its own: some providers give none, or one to several."""
        named: dict[str, dict[str, Any]] = {}
        for place, call in enumerate(self._calls):
            name = str(call["id"])
            if not name or name in named:
                name = f"call_{self._token}{place}"
            named[name] = call | {"id": name}
        return list(named.values())


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
        results: dict[int, ToolResult] = {}  # by place: some providers give no ids, or the same one twice
        async with aclosing(_results(tools, turn.calls, end)) as ended:
            async for place, result in ended:
                results[place] = result
                yield result
        for place, call in enumerate(turn.calls):
            told = results[place].result if place in results else "Not finished: the time was over."
            content = told if isinstance(told, str) else to_json(told).decode()
            said.append({"role": "tool", "tool_call_id": call.id, "content": content})
        if len(results) < len(turn.calls):
            reason = "deadline"
            break
    yield Done(reason=reason, text=turn.text, turns=turns, usage=usage, messages=said)


async def _results(tools: Tools, calls: Sequence[ToolCall], end: float) -> AsyncGenerator[tuple[int, ToolResult], None]:
    """Make all calls at once; yield each one's place and result when it is there, and cancel the rest at the end."""

    async def make(place: int) -> tuple[int, ToolResult]:
        return place, await tools.call(calls[place])

    tasks = [asyncio.create_task(make(place)) for place in range(len(calls))]
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


def _sum(one: Usage, other: Usage) -> Usage:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return Usage(**{name: getattr(one, name) + getattr(other, name) for name in names})
