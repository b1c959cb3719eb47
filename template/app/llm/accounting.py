"""What is done around every call, whole or streamed: limits, the gauge of calls in flight, a span, and its numbers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

from app.access.limits import Limiter, estimate
from app.errors import AppError, ProviderError
from app.llm.call import Call, CallTotals
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Span, Tracing


class Accounting:
    """Counts calls.

    Args:
        limiter: admits calls within the limits of their callers and models.
        metrics: told of every call.
        tracing: makes the spans; None makes none.
    """

    def __init__(self, limiter: Limiter, metrics: Metrics, tracing: Tracing | None) -> None:
        self._limiter = limiter
        self._metrics = metrics
        self._tracing = tracing

    @asynccontextmanager
    async def around(self, call: Call, totals: CallTotals | None) -> AsyncIterator[Span | None]:
        """Admit a call, and count it when it has ended, however it ends. Yields the call's span, if it has one.

        Args:
            call: the call.
            totals: the call is added to it when it has ended.

        Raises:
            RateLimited: a limit of the caller's or of the model's is reached.
        """
        target = call.target
        async with self._limiter.admit(call.caller, target.name, target.entry, call.fields) as admission:
            call.headers |= admission.headers
            span = self._start_span(call)
            outcome = "cancelled"
            try:
                with self._metrics.calls_in_flight(target.name).track_inprogress():
                    yield span
                outcome = "ok"
            except AppError as error:
                outcome = error.kind
                if span:
                    span.fail(error.code)
                if isinstance(error, ProviderError) and error.truncated and call.stream and call.began_at is not None:
                    self._metrics.truncated(call.answered_by.name).inc()
                raise
            finally:
                if call.began_at is not None:  # else Retries has counted each attempt
                    self._count(call, outcome, call.began_at)
                admission.used = call.prompt_tokens + call.completion_tokens
                if span:
                    self._end_span(span, call)
                if totals:
                    totals.add(call)

    def _count(self, call: Call, outcome: str, began_at: float) -> None:
        model = call.answered_by.name
        self._metrics.upstream_calls(model, outcome).inc()
        if stream := call.stream:
            if stream.chunks > 1:
                self._metrics.per_chunk(model).observe((perf_counter() - began_at) / (stream.chunks - 1))
            call.response_model = stream.model
            call.finish_reasons = list(stream.finish_reasons.values())
            usage = stream.usage or {"prompt_tokens": estimate(call.fields), "completion_tokens": stream.chunks}
            call.prompt_tokens, call.completion_tokens = tokens(usage)
        caller = call.caller.label if call.caller else "app"
        self._metrics.tokens(model, caller, "in").inc(call.prompt_tokens)
        self._metrics.tokens(model, caller, "out").inc(call.completion_tokens)

    def _start_span(self, call: Call) -> Span | None:
        if self._tracing is None:
            return None
        return self._tracing.start(call.operation, call.target.name, call.target.provider, call.target.model)

    @staticmethod
    def _end_span(span: Span, call: Call) -> None:
        span.end(
            provider=call.answered_by.provider,
            model=call.answered_by.model,
            response_model=call.response_model,
            finish_reasons=call.finish_reasons,
            input_tokens=call.prompt_tokens,
            output_tokens=call.completion_tokens,
            tried=[target.name for target in call.tried],
        )


def tokens(usage: object) -> tuple[int, int]:
    """Return the tokens of the request and of the answer that a provider's `usage` tells; 0 for what it doesn't."""
    if not isinstance(usage, dict):
        return 0, 0
    told = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    prompt, completion = (number if isinstance(number, int) and number > 0 else 0 for number in told)
    return prompt, completion
