"""What is done around every call, whole or streamed: limits, the gauge of calls in flight, a span, and metrics."""

from dataclasses import dataclass
from time import perf_counter
from types import TracebackType

from app.access.limits import Limiter, estimate
from app.errors import AppError, ProviderError
from app.llm.call import Call, CallTotals
from app.llm.relay import StreamState
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Span, Tracing

MOST_TOKENS = 10**9
"""Fewer than this has every request and every answer."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """The objects that record calls.

    Attributes:
        limiter: admits calls within the limits of their callers and models.
        metrics: counts every call.
        tracing: starts the spans; None starts none.
    """

    limiter: Limiter
    metrics: Metrics
    tracing: Tracing | None


class AccountedCall:
    """The context in which a call is made: it admits the call, and counts it when it has ended, however it ends.

    Args:
        accounting: what the call is counted with.
        call: the call.
        totals: the call is added to it when it has ended; None keeps nothing.
    """

    __slots__ = ("_accounting", "_admission", "_call", "_span", "_totals")

    def __init__(self, accounting: Accounting, call: Call, totals: CallTotals | None) -> None:
        target = call.target
        self._accounting = accounting
        self._call = call
        self._totals = totals
        self._admission = accounting.limiter.admit(call.caller, target.name, target.entry, call.fields)
        self._span: Span | None = None

    async def __aenter__(self) -> Span | None:
        """Admit the call; return its span, if calls are traced.

        Raises:
            RateLimited: a limit of the caller's or of the model's is reached.
        """
        call, accounting = self._call, self._accounting
        await self._admission.__aenter__()
        call.headers |= self._admission.headers
        accounting.metrics.calls_in_flight(call.target.name).inc()
        if accounting.tracing:
            target = call.target
            self._span = accounting.tracing.start(call.operation, target.name, target.provider, target.model)
        return self._span

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        call = self._call
        try:
            self._record(call, error)
        finally:
            self._admission.used = call.prompt_tokens + call.completion_tokens
            await self._admission.__aexit__(kind, error, trace)

    def _record(self, call: Call, error: BaseException | None) -> None:
        metrics = self._accounting.metrics
        metrics.calls_in_flight(call.target.name).dec()
        if call.began_at is not None:  # else Retries has counted each attempt
            model = call.answered_by.name
            metrics.upstream_calls(model, _outcome(error)).inc()
            if call.stream:
                self._read(call.stream, call.began_at)
                if isinstance(error, ProviderError) and error.truncated:
                    metrics.truncated(model).inc()
            caller = call.caller.label if call.caller else "app"
            metrics.tokens(model, caller, "in").inc(call.prompt_tokens)
            metrics.tokens(model, caller, "out").inc(call.completion_tokens)
        if call.translator:
            dialect = call.translator.dialect
            way = "passed_through" if dialect in call.answered_by.speaks else "translated"
            metrics.dialects(call.answered_by.name, dialect, way).inc()
        if self._span:
            self._end_span(self._span, error)
        if self._totals:
            self._totals.add(call)

    def _read(self, stream: StreamState, began_at: float) -> None:
        """Copy what the stream has said about the call. Tokens that the provider has not counted are estimated."""
        call = self._call
        if stream.chunks > 1:
            pause = (perf_counter() - began_at) / (stream.chunks - 1)
            self._accounting.metrics.per_chunk(call.answered_by.name).observe(pause)
        call.response_model = stream.model
        call.finish_reasons = list(stream.finish_reasons.values())
        if stream.usage:
            call.prompt_tokens, call.completion_tokens = tokens(stream.usage)
        else:
            call.prompt_tokens = estimate(call.fields, call.target.entry.upstream)
            call.completion_tokens = stream.chunks

    def _end_span(self, span: Span, error: BaseException | None) -> None:
        call = self._call
        if isinstance(error, AppError):
            span.fail(error.code)
        span.end(
            provider=call.answered_by.provider,
            model=call.answered_by.model,
            response_model=call.response_model,
            finish_reasons=call.finish_reasons,
            input_tokens=call.prompt_tokens,
            output_tokens=call.completion_tokens,
            tried=[target.name for target in call.tried],
        )


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, AppError):
        return error.kind
    return "internal_error" if isinstance(error, Exception) else "cancelled"


def tokens(usage: object) -> tuple[int, int]:
    """Return the tokens of the request and of the answer that a provider's `usage` tells; 0 for what can't be so."""
    if not isinstance(usage, dict):
        return 0, 0
    told = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    prompt, completion = (number if type(number) is int and 0 < number < MOST_TOKENS else 0 for number in told)
    return prompt, completion
