"""LLMClient: one interface to every model of the table."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

from pydantic_core import to_json

from app.access.callers import Caller
from app.access.estimate import estimate
from app.access.limits import Admission, Held
from app.errors import InvalidRequest, ModelNotFound
from app.llm.accounting import AccountedCall
from app.llm.adapter import ChatAdapter
from app.llm.call import Answer, Call, CallTotals, OpenStream, Operation
from app.llm.deadlines import Deadlines
from app.llm.embeddings import encode_as_base64
from app.llm.failures import unreadable
from app.llm.stream_state import StreamState
from app.llm.targets import Target
from app.llm.translator import Translator
from app.llm.typed_calls import TypedCalls
from app.llm.upstreams import Upstreams
from app.llm.usage import count_tokens
from app.models import ChatRequest, EmbeddingRequest, text_of
from app.telemetry.tracing import current


class LLMClient(TypedCalls):
    """Answers chat completions and embeddings from the models of the table, for one caller.

    Args:
        upstreams: the models.
        caller: who calls; None is the application itself, to which only the models' limits apply.
        totals: each call is added to it when it ends; None keeps nothing.
        prepaid: as in `Admission`, for the first call.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        caller: Caller | None = None,
        totals: CallTotals | None = None,
        prepaid: dict[str, str] | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._retries = upstreams.retries
        self._caller = caller
        self._totals = totals
        self._prepaid = prepaid

    @property
    def caller_name(self) -> str | None:
        """The name of who calls; None for the application itself."""
        return self._caller.name if self._caller else None

    def with_all_models(self) -> "LLMClient":
        """Return a client that may use every model, for this caller: within its limits, in its name and on its bill.

        Who calls without a key gets no more than before.
        """
        caller = self._caller
        opened = replace(caller, models=None) if caller and not caller.anonymous else caller
        return LLMClient(self._upstreams, opened, self._totals)

    def usable(self) -> list[Target]:
        """Return the models that this caller may use."""
        targets = self._upstreams.targets.values()
        return [target for target in targets if self._caller is None or self._caller.may_use(target.name)]

    def admitted(self) -> Admission:
        """Return a context to read a request's body in. It charges the caller with one request, and holds a place.

        The client's next call is then not charged with a request. Entering may raise RateLimited.
        """
        admission = self._upstreams.accounting.limiter.admit_request(self._caller)
        self._prepaid = admission.headers
        return admission

    def candidates(self, model: str | None) -> list[str]:
        """Return the public names of a model and of those of its fallbacks that this caller may use."""
        target, caller = self._target(model), self._caller
        return [target.name, *(name for name in target.entry.fallbacks if caller is None or caller.may_use(name))]

    async def answer(self, request: ChatRequest | Translator, held: Held | None = None) -> Answer:
        """Return OpenAI's chat completion as it came, and the call that brought it; errors as in `complete`.

        Args:
            request: the request; of another dialect than chat, its translator: the body has the dialect's answer too.
            held: what is put into it gives back the call's places in flight, once the answer is sent; None gives them
                back at once.
        """
        call = self._chat(request)
        if not call.is_outlined and call.fields.get("stream_options"):
            raise InvalidRequest("stream_options: only where stream is true.", param="stream_options")
        call.fields.pop("stream", None)
        async with self._accounted(call, held) as span:
            with current(span):
                body = await self._retries.run(call, lambda target: self._adapter(target, call).complete(call, target))
            _take_note(call, body)
            try:
                body["content"] = text_of((body["choices"][0].get("message") or {}).get("content"))
            except (LookupError, AttributeError):
                raise unreadable(call.answered_by.name) from None
        return Answer(body, call)

    async def embeddings(self, request: EmbeddingRequest, held: Held | None = None) -> Answer:
        """Return OpenAI's embeddings object; arguments as in `answer`, errors as in `complete`."""
        model = request.model or self._upstreams.settings.default_embedding_model
        call = self._call("embeddings", self._target(model), _fields(request))
        async with self._accounted(call, held) as span:
            with current(span):
                body = await self._retries.run(
                    call, lambda target: self._upstreams.adapters[target.adapter].embed(call, target)
                )
            _take_note(call, body)
            if request.encoding_format == "base64" and not encode_as_base64(body):
                raise unreadable(call.answered_by.name)
        return Answer(body, call)

    @asynccontextmanager
    async def open_stream(self, request: ChatRequest | Translator) -> AsyncIterator[OpenStream]:
        """Open a chat completion's stream of server-sent events; entering returns when its first event is there.

        Errors before the first event are raised on entering, later ones while the packets are read. Leaving closes the
        provider's connection.

        Args:
            request: the request; of another dialect than chat, its translator: the packets are in that dialect.

        Raises:
            AppError: as in `complete`.
        """
        call = self._chat(request)
        call.fields["stream"] = True
        wants_usage = not isinstance(request, ChatRequest) or request.wants_usage
        del request  # its messages are in the call

        async def begin(target: Target) -> tuple[bytes, AsyncGenerator[bytes, None]]:
            choices = target.fields(call.fields).get("n") or 1
            state = call.stream = StreamState(choices, wants_usage=wants_usage)
            packets = self._adapter(target, call).stream(call, target, state)
            return await anext(packets), packets

        async with self._accounted(call) as span:
            started = perf_counter()
            with current(span):
                first, packets = await self._retries.run(call, begin)
            call.began_at = perf_counter()
            self._upstreams.metrics.first_chunk(call.answered_by.name).observe(call.began_at - started)
            async with aclosing(packets):
                yield OpenStream(call, first, packets)

    async def count_tokens(self, translator: Translator) -> tuple[dict[str, Any], str]:
        """Return `{"input_tokens": ...}` for a request that isn't sent, and who has counted: `provider` or `estimate`.

        Raises:
            AppError: as in `complete`.
        """
        target = self._target(translator.model)
        if translator.dialect in target.speaks:
            translator.outlines()  # by which it is checked
            admission = self._upstreams.limiter.admit(self._caller, target.name, target.entry, {})
            admission.prepaid, self._prepaid = self._prepaid, None
            deadlines = Deadlines(self._upstreams.settings.timeouts)
            async with admission:
                return await self._upstreams.native.count_tokens(translator, target, deadlines), "provider"
        return {"input_tokens": estimate(translator.fields, target.entry.upstream)}, "estimate"

    def _chat(self, request: ChatRequest | Translator) -> Call:
        target = self._target(request.model)
        if isinstance(request, ChatRequest):
            return self._call("chat", target, _fields(request))
        fields = request.outlines() if request.dialect in target.speaks else dict(request.fields)
        return self._call("chat", target, fields, request)

    def _call(
        self, operation: Operation, target: Target, fields: dict[str, Any], translator: Translator | None = None
    ) -> Call:
        while param := target.exceeded(fields):
            limit = target.entry.max_tokens_limit or 0
            if translator is None:
                raise InvalidRequest(f"{param}: at most {limit} (setting max_tokens_limit).", param=param)
            translator.lower(limit)
            fields[param] = limit
        prepaid, self._prepaid = self._prepaid, None
        deadlines = Deadlines(self._upstreams.settings.timeouts)
        is_outlined = translator is not None and translator.dialect in target.speaks
        return Call(operation, target, fields, deadlines, self._caller, prepaid, translator, is_outlined)

    def _accounted(self, call: Call, held: Held | None = None) -> AccountedCall:
        return AccountedCall(self._upstreams.accounting, call, self._totals, held)

    def _adapter(self, target: Target, call: Call) -> ChatAdapter:
        adapter = self._upstreams.adapters[target.adapter]
        return adapter if call.translator is None else self._upstreams.translated(adapter, target, call.translator)

    def _target(self, name: str | None) -> Target:
        name = name or self._upstreams.settings.default_model
        target = self._upstreams.targets.get(name)
        if self._caller and not self._caller.may_use(name) and (target or self._caller.anonymous):
            raise self._caller.refusal(name)
        if target is None:
            message = "There is no such model here. GET /v1/models lists those that you may use."
            raise ModelNotFound(message, param="model")
        return target


def _fields(request: ChatRequest | EmbeddingRequest) -> dict[str, Any]:
    """Return the fields that a request sets. A null at the top level is a field left out."""
    return {name: value for name, value in request.model_dump(exclude_unset=True).items() if value is not None}


def _take_note(call: Call, body: dict[str, Any]) -> None:
    """Record what a whole answer tells about itself."""
    call.began_at = perf_counter()
    count_tokens(call, body.get("usage"), lambda: len(to_json(body.get("choices") or "")) // 4)
    call.response_model = body.get("model")
    try:
        call.finish_reasons = [str(choice.get("finish_reason")) for choice in body.get("choices") or ()]
    except (AttributeError, TypeError):
        raise unreadable(call.answered_by.name) from None
