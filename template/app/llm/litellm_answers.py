"""OpenAI's answers, made of LiteLLM's objects."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Collection
from typing import Any

from app.llm.provider_responses import AFTER_DONE

NOTHING = {"text": "", "is_finished": False, "finish_reason": "", "usage": None, "index": 0, "tool_use": None}
"""What an adapter of LiteLLM's returns for a line without data: of Anthropic's three lines to an event, for two."""


class Spoken:
    """The chunks of an adapter of LiteLLM's, without those that say nothing.

    LiteLLM's wrapper, which asks for these, makes an object for each chunk, which takes as long whatever is in it, and
    drops those that are empty. By the first one after the finish reason it knows Anthropic's end, and closes the
    connection, so the response is first read to its end.

    Args:
        stream: the wrapper, around the adapter's chunks.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._source = stream.completion_stream
        self._chunks = aiter(self._source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)  # how the wrapper closes it

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while True:
            chunk = await anext(self._chunks)
            if chunk != NOTHING:
                return chunk
            if self._stream.received_finish_reason is not None:
                await self._read_to_end()
                return chunk

    async def _read_to_end(self) -> None:
        with contextlib.suppress(Exception):  # whatever comes now, the wire has seen it
            async with asyncio.timeout(AFTER_DONE):
                async for _ in self._chunks:
                    pass


def skip_empty(stream: Any) -> None:
    """Let LiteLLM's stream see only what its provider says; one that is not opened yet stays as it is."""
    if isinstance(getattr(stream, "completion_stream", None), AsyncIterable):
        stream.completion_stream = Spoken(stream)


def completion_of(answer: Any) -> dict[str, Any]:
    """Return OpenAI's `chat.completion` for LiteLLM's object, which leaves out what is null."""
    body: dict[str, Any] = answer.model_dump(exclude_none=True)
    for choice in body["choices"]:
        choice["message"] = {"content": None, "refusal": None, **choice["message"]}
        choice.setdefault("logprobs", None)
        name_ends([choice], {said_in(choice)})
    if "usage" in body:
        body["usage"].pop("cost", None)
    return body


def chunk_of(chunk: Any) -> dict[str, Any]:
    """Return OpenAI's `chat.completion.chunk` for LiteLLM's object; usage comes in a chunk of its own."""
    body: dict[str, Any] = chunk.model_dump(exclude_none=True)
    if "usage" in body:
        body["usage"].pop("cost", None)
        body["choices"] = []
    for choice in body["choices"]:
        choice.setdefault("finish_reason", None)
        choice.setdefault("logprobs", None)
    return body


def said_in(choice: dict[str, Any]) -> str | None:
    """Return `tools` if a choice or its delta calls a tool, `text` if it only has text, None if it has neither."""
    message = choice.get("message") or choice.get("delta") or {}
    return "tools" if message.get("tool_calls") else "text" if message.get("content") else None


def name_ends(choices: list[dict[str, Any]], said: Collection[str | None]) -> None:
    """Make the finish reason of an answer that has called tools `tool_calls`: LiteLLM 1.106 says `stop` for Cohere.

    Args:
        choices: whole choices, or those of a chunk; changed in place.
        said: what the answer has said until now, of `said_in`.
    """
    for choice in choices:
        if "tools" in said and choice.get("finish_reason") == "stop":
            choice["finish_reason"] = "tool_calls"
