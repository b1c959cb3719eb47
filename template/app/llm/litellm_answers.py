"""OpenAI's answers, made of LiteLLM's objects."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Collection
from typing import Any

from app.llm.provider_responses import AFTER_DONE

NOTHING = {"text": "", "is_finished": False, "finish_reason": "", "usage": None, "index": 0, "tool_use": None}
"""What an adapter of LiteLLM's yields for a line without data: of Anthropic's three lines to an event, for two."""


async def spoken(stream: Any, chunks: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Yield an adapter's chunks without those that say nothing.

    LiteLLM's wrapper takes as long for each as for one with text. By the first one after the finish reason it knows
    Anthropic's end, and closes the connection; so what is left of the response is read, and it can be used again.

    Args:
        stream: LiteLLM's wrapper, which reads these.
        chunks: what its adapter yields.
    """
    async for chunk in chunks:
        if chunk != NOTHING:
            yield chunk
        elif stream.received_finish_reason is not None:
            with contextlib.suppress(Exception):  # whatever comes now, the wire has seen it
                async with asyncio.timeout(AFTER_DONE):
                    async for _ in chunks:
                        pass
            return


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
