"""A fake in place of LLMClient, for tests of your own endpoints:

fake = FakeLLM("A short summary.")
app.dependency_overrides[get_llm] = lambda: fake

The service's own routes take no overrides: give their models a stub's `api_base`, as tests/conftest.py does.
"""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

from app.errors import AppError
from app.llm.structured import M
from app.models import AssistantMessage, ChatChunk, ChatResponse, Choice, EmbeddingResponse, Message


class FakeLLM:
    """Says what it is told to say, and remembers what it was asked.

    Args:
        *answers: what the calls of `complete`, `stream` and `parse` give, one after the other: a text, which is JSON
            for `parse`, or an error that is raised. The last one is given for ever.

    Attributes:
        calls: the arguments of every call, by name; `kind` and `texts` among them.
    """

    def __init__(self, *answers: str | AppError) -> None:
        self.calls: list[dict[str, Any]] = []
        self._answers = deque(answers or ["Hello from the fake."])

    async def complete(
        self, *, messages: Sequence[Message | dict[str, Any]], model: str | None = None, **fields: Any
    ) -> ChatResponse:
        """Return the next answer."""
        text = self._next(messages=messages, model=model, **fields)
        choice = Choice(message=AssistantMessage(content=text), finish_reason="stop")
        return ChatResponse(id="chatcmpl-fake", model=model or "fake", choices=[choice], content=text)

    async def stream(
        self, *, messages: Sequence[Message | dict[str, Any]], model: str | None = None, **fields: Any
    ) -> AsyncIterator[ChatChunk]:
        """Yield the next answer, a word at a time."""
        words = self._next(messages=messages, model=model, **fields).split(" ")
        for number, word in enumerate(words):
            choice = {
                "delta": {"content": f" {word}" if number else word},
                "finish_reason": "stop" if number == len(words) - 1 else None,
            }
            yield ChatChunk.model_validate({"id": "chatcmpl-fake", "model": model or "fake", "choices": [choice]})

    async def parse(
        self, kind: type[M], *, messages: Sequence[Message | dict[str, Any]], model: str | None = None, **fields: Any
    ) -> M:
        """Return the next answer as an object."""
        return kind.model_validate_json(self._next(kind=kind, messages=messages, model=model, **fields))

    async def embed(self, texts: str | Sequence[str], *, model: str | None = None, **fields: Any) -> EmbeddingResponse:
        """Return for each text a vector of two numbers: its length, and one."""
        self.calls.append({"texts": texts, "model": model, **fields})
        given = [texts] if isinstance(texts, str) else texts
        rows = [{"index": index, "embedding": [float(len(text)), 1.0]} for index, text in enumerate(given)]
        return EmbeddingResponse.model_validate({"data": rows, "model": model or "fake"})

    def _next(self, **arguments: Any) -> str:
        self.calls.append(arguments)
        answer = self._answers.popleft() if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, AppError):
            raise answer
        return answer
