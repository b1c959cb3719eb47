"""TypedCalls: what Python code asks models for, in types. LLMClient has these methods beside those of the routes."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError

from app.errors import InvalidRequest, ModelNotFound, OwnCallError, unfit
from app.llm.call import Answer, Call, OpenStream
from app.llm.failures import unreadable
from app.llm.json_text import read_json
from app.llm.sse import Events, event_data
from app.llm.structured import M, Parsed, parse
from app.llm.tool_loop import RunEvent, run
from app.llm.tools import SchemaTool, Tool, Tools
from app.models import (
    AssistantMessage,
    ChatChunk,
    ChatRequest,
    ChatResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    Message,
    as_sent,
)

Messages = Sequence[Message | AssistantMessage | dict[str, Any]]


class TypedCalls(ABC):
    """Calls that take and return Python objects, on top of those that take requests and return OpenAI's objects."""

    @abstractmethod
    async def answer(self, request: ChatRequest) -> Answer: ...
    @abstractmethod
    async def embeddings(self, request: EmbeddingRequest) -> Answer: ...
    @abstractmethod
    def open_stream(self, request: ChatRequest) -> AbstractAsyncContextManager[OpenStream]: ...
    @abstractmethod
    def candidates(self, model: str | None) -> list[str]: ...

    async def complete(self, *, messages: Messages, model: str | None = None, **fields: Any) -> ChatResponse:
        """Return a whole chat completion.

        Args:
            messages: the conversation, in OpenAI's form.
            model: a public name of the model table; None is the default model.
            **fields: any other field of OpenAI's request.

        Raises:
            OwnCallError: there is no such model in the table, or a field is wrong.
            AppError: one of the errors in app/errors.py.
        """
        with _as_own_mistake(model):
            answer = await self._ask(model=model, messages=list(map(as_sent, messages)), **fields)
        return _typed(ChatResponse, answer.body, answer.call)

    async def stream(
        self, *, messages: Messages, model: str | None = None, **fields: Any
    ) -> AsyncGenerator[ChatChunk, None]:
        """Yield a chat completion's chunks; arguments and errors as in `complete`."""
        async with AsyncExitStack() as opened:
            with _as_own_mistake(model):
                request = _request(ChatRequest, model=model, messages=list(map(as_sent, messages)), **fields)
                stream = await opened.enter_async_context(self.open_stream(request))
            for chunk in _chunks(stream.first, stream.call):
                yield chunk
            async for packet in stream.packets:
                for chunk in _chunks(packet, stream.call):
                    yield chunk

    async def parse(
        self, kind: type[M], *, messages: Messages, model: str | None = None, repairs: int = 1, **fields: Any
    ) -> M:
        """Return an answer as a validated Pydantic object; arguments and errors as in `parse_with_usage`."""
        return (await self.parse_with_usage(kind, messages=messages, model=model, repairs=repairs, **fields)).value

    async def parse_with_usage(
        self, kind: type[M], *, messages: Messages, model: str | None = None, repairs: int = 1, **fields: Any
    ) -> Parsed[M]:
        """Return an answer as a validated Pydantic object, with the model that gave it and what all tries used up.

        Args:
            kind: the class of the object.
            messages: as in `complete`, like all the rest.
            model: as in `complete`.
            repairs: how often a model is shown what is wrong with its answer, 0 or more. Then its fallbacks are tried.
            **fields: as in `complete`.

        Raises:
            UnfitAnswer: no model's answer fits `kind`.
            AppError: as in `complete`.
        """
        sent = [as_sent(message) for message in messages]
        with _as_own_mistake(model):
            return await parse(partial(self._ask, **fields), kind, sent, self.candidates(model), repairs)

    def run(
        self,
        *,
        messages: Messages,
        tools: Sequence[Tool | SchemaTool],
        model: str | None = None,
        max_turns: int = 8,
        tool_timeout: float = 30,
        timeout: float = 300,
        **fields: Any,
    ) -> AsyncGenerator[RunEvent, None]:
        """Yield what happens while a model answers with tools: `TextDelta`, `ToolCall`, `ToolResult`, and `Done` last.

        Args:
            messages: as in `complete`.
            tools: typed functions, async or not; the model gets their names, docstrings and arguments.
            model: as in `complete`.
            max_turns: how often the model is called at most.
            tool_timeout: seconds that one call of a tool may take.
            timeout: seconds that all of it may take.
            **fields: as in `complete`.

        Raises:
            TypeError: an argument of a tool has no type.
            AppError: as in `complete`.
        """
        offered = Tools(tools, tool_timeout)
        return run(self.stream, messages, offered, max_turns=max_turns, seconds=timeout, model=model, **fields)

    async def embed(self, texts: str | Sequence[str], *, model: str | None = None, **fields: Any) -> EmbeddingResponse:
        """Return the embeddings of a text, or of texts; other arguments and errors as in `complete`."""
        given = texts if isinstance(texts, str) else list(texts)
        with _as_own_mistake(model):
            answer = await self.embeddings(_request(EmbeddingRequest, model=model, input=given, **fields))
        return _typed(EmbeddingResponse, answer.body, answer.call)

    async def _ask(self, **fields: Any) -> Answer:
        return await self.answer(_request(ChatRequest, **fields))


@contextmanager
def _as_own_mistake(model: str | None) -> Iterator[None]:
    """Turn what would be a client's mistake in a request into one of the code that makes this call.

    What an own model says to its caller stays as it is, and so does what an adapter says of the messages' content.
    """
    try:
        yield
    except (InvalidRequest, ModelNotFound) as error:
        if error.said_by_own_model or (error.param or "").startswith("messages"):
            raise
        no_model = f"there is no model {str(model)[:64]!r} in the model table"
        raise OwnCallError(no_model if isinstance(error, ModelNotFound) else error.message) from None


R = TypeVar("R", ChatRequest, EmbeddingRequest)
A = TypeVar("A", ChatResponse, ChatChunk, EmbeddingResponse)


def _request(kind: type[R], **fields: Any) -> R:
    try:
        return kind.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise OwnCallError(unfit(error).message) from None


def _chunks(packet: bytes, call: Call) -> Iterator[ChatChunk]:
    for event in Events().feed(packet):
        data = event_data(event)
        if data and data.strip() != b"[DONE]":
            try:
                chunk = read_json(data)
            except ValueError:  # nested too deeply
                raise unreadable(call.answered_by.name) from None
            yield _typed(ChatChunk, chunk, call)


def _typed(kind: type[A], body: dict[str, Any], call: Call) -> A:
    try:
        return kind.model_validate(body)
    except ValidationError:
        raise unreadable(call.answered_by.name) from None
