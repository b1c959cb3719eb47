"""The demo adapter: a built-in model that needs no key and no network. The same request gets the same answer."""

import asyncio
import hashlib
import itertools
import re
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from pydantic_core import to_json

from app.errors import ProviderRefused
from app.llm.adapter import Adapter
from app.llm.call import Call
from app.llm.sse import DONE
from app.llm.stream_state import StreamState
from app.llm.targets import Target

PAUSE = 0.02
"""Seconds between two chunks, so that one can see it stream."""
DIMENSIONS = 64
MOST_CHARACTERS = 64 * 1024
"""Characters of all choices of an answer together. JSON takes up to six bytes for one."""
MOST_WORDS = 4096
"""Words of all choices of an answer together: a stream sends each in a chunk of its own."""
MOST_NUMBERS = 65_536
"""Numbers of all vectors of an answer together."""
COUNTED = 1024
"""Characters of a text up to which its words are counted. In a longer one, four characters are a word."""


class Demo(Adapter):
    """Echoes the last message, calls an offered tool, and answers a JSON schema with a valid instance."""

    async def complete(self, call: Call, target: Target) -> dict[str, Any]:
        """Return a chat completion; arguments as in `Direct.complete`.

        Raises:
            ProviderRefused: a tool or a JSON schema can't be read.
        """
        fields = call.fields
        message, ending = _answer(fields)
        choice = {"message": {"refusal": None, **message}, "logprobs": None, **ending}
        choices = [{"index": i, **choice} for i in range(fields.get("n") or 1)]
        return {**_head(target, message, "chat.completion"), "choices": choices, "usage": _usage(fields, message)}

    async def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, None]:
        """Yield a stream's events, the usage chunk and `[DONE]` last; arguments and errors as in `complete`."""
        fields = call.fields
        message, ending = _answer(fields)
        head = _head(target, message, "chat.completion.chunk")
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        for i, tool_call in enumerate(message.get("tool_calls") or ()):
            deltas.append({"tool_calls": [{"index": i, **tool_call}]})
        deltas += [{"content": word} for word in _words(message["content"] or "")]
        for delta in (*deltas, {}):
            choice = {"delta": delta, "logprobs": None, **({"finish_reason": None} if delta else ending)}
            chunk = {**head, "choices": [{"index": i, **choice} for i in range(fields.get("n") or 1)]}
            yield state.event(chunk)
            await asyncio.sleep(PAUSE)
        yield state.event({**head, "choices": [], "usage": _usage(fields, message)}) + DONE

    async def embed(self, call: Call, target: Target) -> dict[str, Any]:
        """Return embeddings: for each input a unit vector that depends on that input only."""
        fields = call.fields
        given = fields["input"]
        inputs = [given] if isinstance(given, str) or all(isinstance(item, int) for item in given) else given
        size = fields.get("dimensions") or DIMENSIONS
        if size * len(inputs) > MOST_NUMBERS:
            raise ProviderRefused(f"The demo model answers with at most {MOST_NUMBERS} numbers.", param="dimensions")
        tokens = sum(_tokens(item) if isinstance(item, str) else len(item) for item in inputs)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": _vector(item, size)} for i, item in enumerate(inputs)
            ],
            "model": target.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def _head(target: Target, message: dict[str, Any], kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(to_json(message)).hexdigest()[:24]
    return {"id": f"chatcmpl-{digest}", "object": kind, "created": int(time.time()), "model": target.model}


def _answer(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    if fields.get("logprobs"):
        raise ProviderRefused("The demo model has no logprobs.", param="logprobs")
    try:
        return _message(fields)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ProviderRefused("The demo model can't read this tool or schema.") from None


def _message(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the assistant's message, and how its choice ends."""
    choices = fields.get("n") or 1
    most = MOST_CHARACTERS // choices
    last = fields["messages"][-1]
    told = _text(last.get("content"))
    said = told[:most]
    tools = [tool["function"] for tool in fields.get("tools") or () if isinstance(tool.get("function"), dict)]
    if tools and fields.get("tool_choice") != "none" and last["role"] != "tool":
        chosen = fields.get("tool_choice")
        wanted = chosen["function"].get("name") if isinstance(chosen, dict) and "function" in chosen else None
        tool = next((tool for tool in tools if tool.get("name") == wanted), tools[0])
        parameters = tool.get("parameters") or {}
        arguments = to_json(_instance(parameters, parameters, _Budget(most))).decode()
        name = str(tool.get("name"))[:most]
        call = {
            "id": f"call_{hashlib.sha256(name.encode()).hexdigest()[:24]}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        return {"role": "assistant", "content": None, "tool_calls": [call]}, {"finish_reason": "tool_calls"}
    form = fields.get("response_format") or {}
    if form.get("type") == "json_schema" and isinstance(form.get("json_schema"), dict):
        schema = form["json_schema"].get("schema") or {}
        text = to_json(_instance(schema, schema, _Budget(most))).decode()
        return {"role": "assistant", "content": text}, {"finish_reason": "stop"}
    if form.get("type") == "json_object":
        return {"role": "assistant", "content": to_json({"echo": said}).decode()}, {"finish_reason": "stop"}
    echo = f"You said: {said}" if said else "You said nothing."
    given = fields.get("stop") or []
    stops = sorted((given,) if isinstance(given, str) else given, key=lambda stop: echo.find(stop) % (len(echo) + 1))
    ending = {"finish_reason": "length" if len(told) > most else "stop"}
    if stops and stops[0] in echo:
        echo, ending = echo.partition(stops[0])[0], {"finish_reason": "stop", "stop_reason": stops[0]}  # by vLLM's name
    words = _words(echo)
    limit = min(fields.get("max_completion_tokens") or fields.get("max_tokens") or MOST_WORDS, MOST_WORDS // choices)
    text = "".join(itertools.islice(words, limit))
    return {"role": "assistant", "content": text}, {"finish_reason": "length"} if next(words, None) else ending


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content or ""


def _words(text: str) -> Iterator[str]:
    return (found[0] for found in re.finditer(r"\S+\s*|\s+", text))


def _tokens(text: str) -> int:
    return len(text.split()) if len(text) <= COUNTED else len(text) // 4


def _usage(fields: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    """Return the usage. Half of what comes before the last message counts as cached, for clients that show it."""
    *cached, last = (_tokens(_text(m.get("content"))) for m in fields["messages"])
    asked = sum(cached) + last
    answered = _tokens(message["content"] or str(message.get("tool_calls"))) * (fields.get("n") or 1)
    total = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
    return {**total, "prompt_tokens_details": {"cached_tokens": sum(cached) // 2}}


class _Budget:
    """What a value may take, in characters: a schema of a few lines may ask for more than any memory holds."""

    def __init__(self, characters: int) -> None:
        self._left = characters

    def pay(self, characters: int) -> None:
        """Raise ValueError if that is more than is left."""
        self._left -= characters
        if self._left < 0:
            raise ValueError


def _instance(schema: Any, root: dict[str, Any], budget: _Budget, depth: int = 0) -> Any:
    """Return a small value that fits a JSON schema; of JSON Schema, only what models are usually given is read."""
    budget.pay(32)
    if not isinstance(schema, dict) or depth > 16:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        budget.pay(len(reference))
        found: Any = root
        for step in reference.removeprefix("#").strip("/").split("/"):
            found = found.get(step, {}) if isinstance(found, dict) else {}
        return _instance(found, root, budget, depth + 1)
    given = [schema[key] for key in ("const", "default") if key in schema]
    if isinstance(schema.get("enum"), list):
        given += schema["enum"][:1]
    if given:
        budget.pay(len(to_json(given[0])))
        return given[0]
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return _instance(schema[key][0], root, budget, depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties")
        inner = properties if isinstance(properties, dict) else {}
        budget.pay(sum(map(len, inner)))
        return {name: _instance(value, root, budget, depth + 1) for name, value in inner.items()}
    if kind == "array":
        item = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return [_instance(item, root, budget, depth + 1) for _ in range(min(schema.get("minItems") or 0, 16))]
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        return min(low, schema.get("maximum", low)) if kind == "integer" else float(low)
    text = "demo".ljust(min(schema.get("minLength") or 0, 1024), ".") if kind == "string" else ""
    budget.pay(len(text))
    return text or (True if kind == "boolean" else None)


def _vector(item: Any, dimensions: int) -> list[float]:
    seed = hashlib.sha256(to_json(item)).digest()
    values = [byte / 127.5 - 1 for byte in hashlib.shake_256(seed).digest(dimensions)]
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]
