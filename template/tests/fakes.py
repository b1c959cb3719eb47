"""A fake in place of LLMClient, for tests of your own endpoints:

fake = FakeLLM("A short summary.")
app.dependency_overrides[get_llm] = lambda: fake

It is the real client with a model that says what it is told to say, so it streams, repairs, calls tools and fails as
the real one does. The service's own routes take no overrides: give their models a stub's `api_base`, as
tests/conftest.py does.
"""

import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from app.config import ModelEntry, Settings
from app.errors import AppError
from app.llm.adapter import Adapter
from app.llm.call import Call
from app.llm.client import LLMClient
from app.llm.sse import DONE
from app.llm.stream_state import StreamState
from app.llm.structured import M, Parsed
from app.llm.targets import Target
from app.llm.typed_calls import Messages
from app.llm.upstreams import Upstreams
from app.models import ChatChunk, ChatResponse, EmbeddingResponse

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
"""What every answer has used."""


@dataclass(frozen=True)
class Calls:
    """An answer that asks for calls of tools, all at once.

    Attributes:
        calls: names of tools, with the arguments of each.
    """

    calls: Sequence[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class BreaksOff:
    """A stream that fails after some of its text; a whole answer fails at once.

    Attributes:
        text: what it has said until then.
        error: how it fails.
    """

    text: str
    error: AppError


Scripted = str | Calls | BreaksOff | AppError
Vector = Callable[[str], list[float]]


def tool(name: str, **arguments: Any) -> Calls:
    """Return an answer that asks for one call of a tool."""
    return Calls([(name, arguments)])


class FakeLLM(LLMClient):
    """Says what it is told to say, and remembers what it was asked.

    Args:
        *answers: what its calls get, one after the other: a text, which is JSON for `parse`; calls of tools; or an
            error that is raised. The last one is given for ever.
        embeddings: makes the vector of a text, or is the error that is raised; None makes two numbers of it, its length
            and one.
        fallbacks: names of models that are tried after an answer that is an error; they take the next answers.

    Attributes:
        calls: the arguments of every call, by name; `kind`, `texts` and `tools` among them.
        requests: the fields of every request to the model; a loop with tools, or a repair, sends several.
    """

    def __init__(
        self, *answers: Scripted, embeddings: AppError | Vector | None = None, fallbacks: Sequence[str] = ()
    ) -> None:
        models = {name: ModelEntry(upstream=f"demo/{name}") for name in fallbacks}
        models["fake"] = ModelEntry(upstream="demo/fake", fallbacks=list(fallbacks))
        settings = Settings(models=models, default_model="fake", retries=0)
        upstreams = Upstreams(settings, {})
        upstreams.targets = _AnyModel(upstreams.targets)
        self.calls: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        upstreams.adapters["demo"] = _Script(answers or ["Hello from the fake."], self.requests, embeddings)
        super().__init__(upstreams)

    def with_all_models(self) -> LLMClient:
        """Return this fake: it knows no callers."""
        return self

    async def complete(self, *, messages: Messages, model: str | None = None, **fields: Any) -> ChatResponse:
        """Return the next answer."""
        self.calls.append({"messages": messages, "model": model, **fields})
        return await super().complete(messages=messages, model=model, **fields)

    async def stream(
        self, *, messages: Messages, model: str | None = None, **fields: Any
    ) -> AsyncGenerator[ChatChunk, None]:
        """Yield the next answer, a word at a time."""
        self.calls.append({"messages": messages, "model": model, **fields})
        async for chunk in super().stream(messages=messages, model=model, **fields):
            yield chunk

    async def parse_with_usage(
        self, kind: type[M], *, messages: Messages, model: str | None = None, repairs: int = 1, **fields: Any
    ) -> Parsed[M]:
        """Return the next answer as an object; one that does not fit is repaired by the answer after it."""
        self.calls.append({"kind": kind, "messages": messages, "model": model, **fields})
        return await super().parse_with_usage(kind, messages=messages, model=model, repairs=repairs, **fields)

    async def embed(self, texts: str | Sequence[str], *, model: str | None = None, **fields: Any) -> EmbeddingResponse:
        """Return a vector for each text."""
        self.calls.append({"texts": texts, "model": model, **fields})
        return await super().embed(texts, model=model, **fields)


class _AnyModel(dict[str, Target]):
    """A model table in which every name leads to the fake."""

    def get(self, key: str, default: Any = None) -> Any:
        fake = self["fake"]
        return Target(key, fake.provider, key, fake.adapter, fake.entry)


class _Script(Adapter):
    """An adapter that gives prepared answers."""

    def __init__(
        self, answers: Sequence[Scripted], requests: list[dict[str, Any]], embeddings: AppError | Vector | None
    ) -> None:
        self._answers = deque(answers)
        self._requests = requests
        self._embeddings = embeddings or (lambda text: [float(len(text)), 1.0])

    async def complete(self, call: Call, target: Target) -> dict[str, Any]:
        message, reason, error = self._next(call)
        if error:
            raise error
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return {"id": "chatcmpl-fake", "model": target.model, "choices": [choice], "usage": USAGE}

    async def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, None]:
        message, reason, error = self._next(call)
        deltas: list[dict[str, Any]] = []
        for index, asked in enumerate(message.get("tool_calls") or ()):  # in pieces, as providers send them
            arguments = asked["function"]["arguments"]
            begin = {**asked, "index": index, "function": {**asked["function"], "arguments": arguments[:4]}}
            end = {"index": index, "function": {"arguments": arguments[4:]}}
            deltas += [{"tool_calls": [begin]}, {"tool_calls": [end]}]
        words = (message["content"] or "").split(" ")
        deltas += [{"content": f" {word}" if number else word} for number, word in enumerate(words)]
        for delta in deltas if error else [*deltas, {}]:
            chunk = {"id": "chatcmpl-fake", "model": target.model}
            body = {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else reason}]}
            state.see(body)
            yield b"data: " + to_json(body) + b"\n\n"
        if error:
            raise error
        usage = {"id": "chatcmpl-fake", "model": target.model, "choices": [], "usage": USAGE}
        yield (b"data: " + to_json(usage) + b"\n\n" if state.see(usage) else b"") + DONE

    async def embed(self, call: Call, target: Target) -> dict[str, Any]:
        self._requests.append(dict(call.fields))
        if isinstance(self._embeddings, AppError):
            raise self._embeddings
        given = call.fields["input"]
        texts = [given] if isinstance(given, str) else given
        rows = [{"index": index, "embedding": self._embeddings(text)} for index, text in enumerate(texts)]
        return {"data": rows, "model": target.model, "usage": USAGE}

    def _next(self, call: Call) -> tuple[dict[str, Any], str, AppError | None]:
        self._requests.append(dict(call.fields))
        answer = self._answers.popleft() if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, AppError):
            raise answer
        if isinstance(answer, Calls):
            calls = [
                {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
                for n, (name, given) in enumerate(answer.calls)
            ]
            return {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls", None
        if isinstance(answer, BreaksOff):
            return {"role": "assistant", "content": answer.text}, "stop", answer.error
        return {"role": "assistant", "content": answer or ""}, "stop", None
