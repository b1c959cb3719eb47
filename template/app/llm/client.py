"""LLMClient: one interface to every model of the table."""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from time import perf_counter
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from app.callers import Caller
from app.config import Settings
from app.errors import InvalidRequest, ModelNotFound, ProviderError, invalid_request
from app.limits import Limiter, estimate
from app.llm.attempts import Attempts
from app.llm.clock import Clock
from app.llm.demo import Demo
from app.llm.direct import Direct
from app.llm.failures import unreadable
from app.llm.record import CallRecord
from app.llm.relay import StreamWatch
from app.llm.sse import Events, event_data
from app.llm.structured import M, parse
from app.llm.targets import Target, resolve
from app.llm.via_litellm import ViaLiteLLM
from app.llm.ways import Way
from app.metrics import Metrics
from app.models import ChatChunk, ChatRequest, ChatResponse, EmbeddingRequest, EmbeddingResponse, Message
from app.tracing import Current, Tracing

A = TypeVar("A", ChatResponse, ChatChunk, EmbeddingResponse)
UNTRACED: AbstractContextManager[Current] = nullcontext(nullcontext)


class LLMClient:
    """Answers chat completions and embeddings from the models of the table.

    Retries and fallbacks live here and nowhere else. One client serves the whole application; `for_caller` gives
    an endpoint its own view of it.

    Args:
        settings: the model table, time limits and retries.
        environ: where provider keys are looked up.
        metrics: told of every call; None makes some that nobody reads.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str] = os.environ, metrics: Metrics | None = None
    ) -> None:
        self.settings = settings
        self.targets = {name: resolve(name, entry, environ) for name, entry in settings.models.items()}
        makers: dict[str, Callable[[], Way]] = {
            "direct": lambda: Direct(settings.timeouts, traced=settings.telemetry),
            "litellm": lambda: ViaLiteLLM(settings.timeouts, settings.image_hosts, traced=settings.telemetry),
            "demo": Demo,
        }
        self._ways = {way: makers[way]() for way in {target.way for target in self.targets.values()}}
        self.metrics = metrics or Metrics()
        self._tracing = Tracing() if settings.telemetry else None
        self.limiter = Limiter(settings, self.metrics)
        self._attempts = Attempts(self.targets, settings.retries, self.metrics)
        self.caller: Caller | None = None
        self.record = CallRecord()

    async def start(self) -> None:
        """Open what the ways need; LiteLLM goes on loading in a thread."""
        for way in self._ways.values():
            await way.start()

    async def close(self) -> None:
        """Close every connection."""
        for way in self._ways.values():
            await way.close()

    def failing(self) -> list[str]:
        """Return what is not ready yet, one sentence each."""
        litellm = self._ways.get("litellm")
        return ["LiteLLM is not loaded."] if isinstance(litellm, ViaLiteLLM) and not litellm.ready else []

    def for_caller(self, caller: Caller | None, record: CallRecord) -> "LLMClient":
        """Return this client as one caller may use it; `record` is told what the calls were."""
        client = object.__new__(LLMClient)
        client.__dict__.update(self.__dict__)
        client.caller, client.record = caller, record
        return client

    def usable(self) -> list[Target]:
        """Return the models that this caller may use."""
        return [t for t in self.targets.values() if self.caller is None or self.caller.may_use(t.name)]

    async def complete(
        self, *, messages: Sequence[Message | dict[str, Any]], model: str | None = None, **fields: Any
    ) -> ChatResponse:
        """Return a whole chat completion.

        Args:
            messages: the conversation, in OpenAI's form.
            model: a public name of the model table; None is the default model.
            **fields: any other field of OpenAI's request.

        Raises:
            AppError: as the table of errors says.
        """
        request = _request(ChatRequest, model=model, messages=list(messages), **fields)
        return self._typed(ChatResponse, await self._complete(request))

    async def stream(
        self, *, messages: Sequence[Message | dict[str, Any]], model: str | None = None, **fields: Any
    ) -> AsyncIterator[ChatChunk]:
        """Yield a chat completion's chunks; arguments and errors as in `complete`."""
        request = _request(ChatRequest, model=model, messages=list(messages), **fields)
        async with aclosing(self.events(request)) as packets:
            async for packet in packets:
                for event in Events().feed(packet):
                    data = event_data(event)
                    if data and data.strip() != b"[DONE]":
                        yield self._typed(ChatChunk, from_json(data))

    async def parse(
        self, kind: type[M], *, messages: Sequence[Message | dict[str, Any]], model: str | None = None, **fields: Any
    ) -> M:
        """Return an answer as a validated Pydantic object.

        Args:
            kind: the class of the object.
            messages: as in `complete`, like all the rest.
            model: as in `complete`.
            **fields: as in `complete`.

        Raises:
            ProviderError: the model's text does not fit `kind`, after one repair.
            AppError: as in `complete`.
        """
        return await parse(self, kind, messages, model, **fields)

    async def embed(self, texts: str | Sequence[str], *, model: str | None = None, **fields: Any) -> EmbeddingResponse:
        """Return the embeddings of a text, or of texts; other arguments and errors as in `complete`."""
        given = texts if isinstance(texts, str) else list(texts)
        request = _request(EmbeddingRequest, model=model, input=given, **fields)
        return self._typed(EmbeddingResponse, await self._embed(request))

    async def answer(self, request: ChatRequest) -> bytes:
        """Return a whole chat completion as JSON, for those who only pass it on."""
        return to_json(await self._complete(request))

    async def embeddings(self, request: EmbeddingRequest) -> bytes:
        """Return OpenAI's embeddings object as JSON."""
        return to_json(await self._embed(request))

    async def _embed(self, request: EmbeddingRequest) -> dict[str, Any]:
        fields = request.model_dump(exclude_unset=True)
        return await self._answer(self._target(request.model), fields, lambda way: way.embed)

    async def _complete(self, request: ChatRequest) -> dict[str, Any]:
        target = self._target(request.model, request)
        if request.stream_options:
            raise InvalidRequest("stream_options: only where stream is true.", param="stream_options")
        fields = request.model_dump(exclude_unset=True)
        fields.pop("stream", None)
        fields.pop("stream_options", None)
        answer = await self._answer(target, fields, lambda way: way.complete)
        try:
            answer["content"] = answer["choices"][0]["message"].get("content")
        except (LookupError, AttributeError, TypeError):
            raise unreadable(target.name) from None
        return answer

    async def _answer(
        self, target: Target, fields: dict[str, Any], method: Callable[[Way], Callable[..., Awaitable[dict[str, Any]]]]
    ) -> dict[str, Any]:
        clock = Clock(self.settings.timeouts)
        async with self.limiter.admit(self.caller, target, fields) as admission:
            self.record.headers |= admission.headers
            with self._in_flight(target), self._span(target, fields) as current:
                with current():
                    answer = await self._attempts.run(
                        target, self.caller, self.record, clock, lambda t: method(self._ways[t.way])(t, fields, clock)
                    )
                self.metrics.of(self.metrics.upstream, self.record.model, "ok").inc()
                self.record.response_model = answer.get("model")
                self.record.finish_reasons = [str(c.get("finish_reason")) for c in answer.get("choices") or ()]
                admission.used = self._count(answer.get("usage"))
        return answer

    async def events(self, request: ChatRequest) -> AsyncGenerator[bytes, None]:
        """Yield a chat completion's server-sent events, one or more whole ones at a time, `[DONE]` last.

        Nothing happens before the first is asked for. Errors are raised, before the first packet and after it.
        """
        target = self._target(request.model, request)
        fields = request.model_dump(exclude_unset=True) | {"stream": True}
        clock = Clock(self.settings.timeouts)

        async def begin(target: Target) -> tuple[bytes, AsyncGenerator[bytes, None], StreamWatch]:
            watch = StreamWatch(target.fields(fields).get("n") or 1, wants_usage=request.wants_usage)
            packets = self._ways[target.way].stream(target, fields, clock, watch)
            return await anext(packets), packets, watch

        async with self.limiter.admit(self.caller, target, fields) as admission:
            self.record.headers |= admission.headers
            with self._in_flight(target), self._span(target, fields) as current:
                started = perf_counter()
                with current():
                    first, packets, watch = await self._attempts.run(target, self.caller, self.record, clock, begin)
                began, model, outcome = perf_counter(), self.record.model, "cancelled"
                self.metrics.of(self.metrics.first_chunk, model).observe(began - started)
                try:
                    async with aclosing(packets):
                        yield first
                        async for packet in packets:
                            yield packet
                    outcome = "ok"
                except ProviderError as error:
                    outcome = error.kind
                    if error.truncated:
                        self.metrics.truncated.labels(model).inc()
                    raise
                finally:
                    self.metrics.of(self.metrics.upstream, model, outcome).inc()
                    if watch.chunks > 1:
                        self.metrics.of(self.metrics.per_chunk, model).observe(
                            (perf_counter() - began) / (watch.chunks - 1)
                        )
                    self.record.response_model = watch.model
                    self.record.finish_reasons = list(watch.finish_reasons.values())
                    usage = watch.usage or {"prompt_tokens": estimate(fields), "completion_tokens": watch.chunks}
                    admission.used = self._count(usage)

    def _in_flight(self, target: Target) -> AbstractContextManager[Any]:
        gauge = self.metrics.of(self.metrics.calls_in_flight, target.name)
        tracked: AbstractContextManager[Any] = gauge.track_inprogress()
        return tracked

    def _span(self, target: Target, fields: dict[str, Any]) -> AbstractContextManager[Current]:
        """Return a context with the call's span, if calls are traced; what it gives makes the span the current one."""
        if self._tracing is None:
            return UNTRACED
        return self._tracing.span("chat" if "messages" in fields else "embeddings", target, self.record)

    def _count(self, usage: Any) -> int:
        """Count a call's usage, if its provider gave one; return its tokens."""
        if not isinstance(usage, dict):
            return 0
        told = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        prompt, completion = (number if isinstance(number, int) and number > 0 else 0 for number in told)
        self.record.prompt_tokens += prompt
        self.record.completion_tokens += completion
        caller = self.caller.label if self.caller else "app"
        self.metrics.of(self.metrics.tokens, self.record.model, caller, "in").inc(prompt)
        self.metrics.of(self.metrics.tokens, self.record.model, caller, "out").inc(completion)
        return int(prompt + completion)

    def _typed(self, kind: type[A], answer: dict[str, Any]) -> A:
        try:
            return kind.model_validate(answer)
        except ValidationError:
            raise unreadable(str(self.record.model)) from None

    def _target(self, name: str | None, request: ChatRequest | None = None) -> Target:
        name = name or self.settings.default_model
        target = self.targets.get(name)
        if self.caller and not self.caller.may_use(name) and (target or self.caller.anonymous):
            raise self.caller.refuse(name)
        if target is None:
            raise ModelNotFound("There is no such model here. GET /v1/models lists them.", param="model")
        if request:
            limit = target.entry.max_tokens_limit or self.settings.max_tokens_limit
            for param in ("max_tokens", "max_completion_tokens"):
                if (getattr(request, param) or 0) > limit:
                    raise InvalidRequest(f"{param}: at most {limit} (setting max_tokens_limit).", param=param)
        return target


R = TypeVar("R", ChatRequest, EmbeddingRequest)


def _request(kind: type[R], **fields: Any) -> R:
    try:
        return kind.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False)) from None
