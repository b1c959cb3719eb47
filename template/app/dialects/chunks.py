"""What both dialects read in chat's answers: chunks, tool calls, and a model's reasoning."""

import base64
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from msgspec import DecodeError, Struct, ValidationError
from pydantic_core import to_json

from app.llm.json_text import read_json
from app.llm.sse import Events, event_data
from app.llm.translator import BrokenOff
from app.models import text_of

REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks")
"""Where providers, and LiteLLM, put a model's reasoning: the first two are text, the others lists of parts."""
SEAL = "chat-1."
"""How reasoning begins that was sealed here. What else a client sends as such is another provider's."""


class Delta(Struct, gc=False):
    """What a chunk adds to a choice's message."""

    content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    annotations: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None

    @property
    def text(self) -> str:
        """The text that it adds."""
        text = self.content if isinstance(self.content, str) else text_of(self.content)
        return text if isinstance(text, str) else ""

    @property
    def thought(self) -> dict[str, Any]:
        """The reasoning that it adds, by the names that the provider gave it."""
        if self.reasoning_content or self.reasoning or self.reasoning_details or self.thinking_blocks:
            return {name: value for name in REASONING if (value := getattr(self, name))}
        return {}


class Choice(Struct, gc=False):
    index: Any = 0
    delta: Delta | None = None
    finish_reason: Any = None
    stop_reason: Any = None
    logprobs: Any = None


class Chunk(Struct, gc=False):
    choices: list[Choice] | None = None
    usage: dict[str, Any] | None = None
    model: Any = None
    service_tier: Any = None


T = TypeVar("T")
Thought = dict[str, str | list[dict[str, str | int | float | bool | None]]]
"""A model's reasoning, by the names that the provider gave it."""

_decode = msgspec.json.Decoder(Chunk).decode
_decode_thought = msgspec.json.Decoder(Thought).decode


def chunks(events: Events, packet: bytes) -> Iterator[Chunk | None]:
    """Yield each chunk that a packet of chat's stream completes; None for `[DONE]`."""
    for event in events.feed(packet):
        data = event_data(event)
        if not data:
            continue
        if data.strip() == b"[DONE]":
            yield None
            continue
        try:
            yield _decode(data)
        except (DecodeError, UnicodeDecodeError):
            yield as_chunk(read_json(data))


def as_chunk(body: Any) -> Chunk:
    """Return a chunk, or a whole chat completion, as a chunk; what can't be read is left out."""
    body = dict(body)
    choices = []
    for choice in body.pop("choices", None) or ():
        delta = choice.get("delta") or choice.get("message") or {}
        delta = {name: value for name, value in delta.items() if name in Delta.__struct_fields__}
        choices.append({**choice, "delta": delta})
    if not isinstance(body.get("usage"), dict):
        body.pop("usage", None)
    try:
        return msgspec.convert({**body, "choices": choices}, Chunk)
    except ValidationError:
        return Chunk()


def reason_of(choice: Choice) -> str:
    """Return why a choice ended.

    Raises:
        BrokenOff: its provider has broken it off: vLLM and SGLang say `abort`, OpenRouter says `error`.
    """
    if choice.finish_reason in ("abort", "error"):
        raise BrokenOff
    return str(choice.finish_reason)


@dataclass(slots=True)
class ToolCall:
    """A tool call, as far as it has come.

    Attributes:
        id: the provider's id, else one of ours.
        name: the function's name; empty until it has come.
        parts: the arguments that have come, JSON text in pieces.
        place: where its item stands in the answer; None until the item has begun.
    """

    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)
    place: int | None = None

    @property
    def arguments(self) -> str:
        """The arguments that have come."""
        return "".join(self.parts)


@dataclass(slots=True)
class ToolCalls:
    """The tool calls of an answer, put together from their parts."""

    all: list[ToolCall] = field(default_factory=list)
    _by_index: dict[Any, ToolCall] = field(default_factory=dict)

    def add(self, part: dict[str, Any]) -> tuple[ToolCall, str]:
        """Return the call that a part of a delta's `tool_calls` belongs to, and the arguments that it adds.

        Providers leave out the index, or give several calls the same one: another id with a name begins another call.
        Some say the name with each part, without an id: then it is another call if the arguments so far are complete.
        """
        function = part.get("function") or {}
        index, name, given = part.get("index"), function.get("name") or "", part.get("id") or ""
        call = self.all[-1] if index is None and self.all and not name else self._by_index.get(index)
        is_another = call and name and call.name and (given != call.id if given else _is_json(call.arguments))
        if call is None or is_another or (index is None and name):
            call = self._by_index[index] = ToolCall(given or f"call_{secrets.token_hex(12)}")
            self.all.append(call)
        call.name = call.name or str(name)
        arguments = function.get("arguments") or ""
        text = arguments if isinstance(arguments, str) else to_json(arguments).decode()
        call.parts.append(text)
        return call, text


def _is_json(text: str) -> bool:
    try:
        read_json(text.encode())
    except ValueError:
        return False
    return True


def add_thought(so_far: dict[str, Any], more: dict[str, Any]) -> str:
    """Add a delta's reasoning to what has come so far; return its text.

    Lists of parts are put together as their texts are: a part goes on with the last one of its type and index, until
    that has its signature.
    """
    for name, value in more.items():
        if isinstance(value, str):
            so_far.setdefault(name, []).append(value)
            continue
        parts = so_far.setdefault(name, [])
        for part in value if isinstance(value, list) else ():
            last: dict[str, Any] = parts[-1] if parts else {"signature": "none yet"}
            same = all(last.get(key) == part.get(key) for key in ("type", "index"))
            if same and not last.get("signature"):
                for key, said in part.items():
                    joins = key in ("text", "thinking", "summary", "data") and isinstance(last.get(key), str)
                    last[key] = last[key] + (said or "") if joins else said or last.get(key)
            else:
                parts.append(dict(part))
    text = more.get("reasoning_content") or more.get("reasoning")
    return text if isinstance(text, str) else ""


def sealed(thought: dict[str, Any], model: str) -> str:
    """Return reasoning as opaque text, which a client sends back untouched.

    Args:
        thought: the reasoning, by the names that the provider gave it, as `add_thought` put it together.
        model: the model's public name: another model does not get it back.
    """
    joined = {name: "".join(said) if isinstance(said[0], str) else said for name, said in thought.items() if said}
    return SEAL + base64.urlsafe_b64encode(to_json({"model": model, **joined})).decode()


def unsealed(text: Any, model: str, most: int) -> tuple[Thought | None, int]:
    """Return the reasoning that `sealed` hid, and how many values it has.

    There is none if it is another provider's or another model's, or has more than `most` values.
    """
    thought, values = opened(text, _decode_thought, most)
    if thought is None or thought.get("model") != model:
        return None, values
    return {name: thought[name] for name in REASONING if name in thought} or None, values


def opened(text: Any, decode: Callable[[bytes], T], most: int) -> tuple[T | None, int]:
    """Return what a text hides that was made here, and how many values it has.

    Args:
        text: SEAL, and JSON as base64. Anything else hides nothing.
        decode: reads the JSON.
        most: how many values it may have: nobody else counts those that stand inside of a text.
    """
    if not isinstance(text, str) or not text.startswith(SEAL):
        return None, 0
    values = 0
    try:
        raw = base64.urlsafe_b64decode(text.removeprefix(SEAL))
        strings = raw.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"', most)
        values = len(strings) + b"".join(strings[::2]).count(b",")
        return (decode(raw), values) if values <= most else (None, most)
    except (ValueError, DecodeError):
        return None, min(values, most)


def counts(usage: Any) -> dict[str, int]:
    """Return the numbers that a usage tells by their names; of what can't be read, none."""
    return {k: int(v) for k, v in usage.items() if type(v) in (int, float)} if isinstance(usage, dict) else {}
