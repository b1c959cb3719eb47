"""What is done around every call, whole or streamed: limits, the gauge of calls in flight, a span, and metrics."""

from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any

from app.access.limits import Admission, Held, Limiter, Turn
from app.errors import AppError, BudgetUnavailable, InvalidRequest, ModelNotPriced, ProviderError, RateLimited
from app.llm.call import Call, CallTotals
from app.llm.stream_state import StreamState
from app.llm.targets import Target
from app.llm.usage import count_tokens
from app.quotas import MICRO
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Span, Tracing


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

    async def admit_again(self, call: Call, target: Target) -> bool:
        """Return whether a call may go on to a fallback, within its limits, or once more to a model that may have cost.

        What it can cost is reserved once more, since what it has cost so far is not known, or not settled yet.

        Args:
            call: the call; from now on it keeps its place at the fallback until it ends.
            target: the fallback, or the model that was tried last.
        """
        if target.exceeded(call.fields):
            return False
        turn: Turn = "retry" if target in call.tried else "fallback"
        try:
            admission = self.limiter.admit(call.caller, target.name, target.entry, _sent(call, target), turn)
            await admission.__aenter__()
        except (RateLimited, ModelNotPriced, BudgetUnavailable, InvalidRequest):
            return False
        call.admissions.append((target, admission))
        return True


class AccountedCall:
    """The context in which a call is made: it admits the call, and counts it when it has ended, however it ends.

    Args:
        accounting: what the call is counted with.
        call: the call.
        totals: the call is added to it when it has ended; None keeps nothing.
        held: takes what gives back the call's places in flight, if it is answered; None gives them back at once.
    """

    __slots__ = ("_accounting", "_admission", "_call", "_span", "_totals")

    def __init__(self, accounting: Accounting, call: Call, totals: CallTotals | None, held: Held | None) -> None:
        target = call.target
        self._accounting = accounting
        self._call = call
        self._totals = totals
        self._admission = accounting.limiter.admit(call.caller, target.name, target.entry, _sent(call, target))
        self._admission.prepaid = call.prepaid
        self._admission.held = held
        self._span: Span | None = None

    async def __aenter__(self) -> Span | None:
        """Admit the call; return its span, if calls are traced.

        Raises:
            RateLimited: a limit of the caller's or of the model's is reached.
        """
        call, accounting = self._call, self._accounting
        await self._admission.__aenter__()
        call.admissions.append((call.target, self._admission))
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
            model = call.answered_by.name
            used = {model: call.prompt_tokens + call.completion_tokens}
            for name, totals in call.inner.items():
                used[name] = totals.prompt_tokens + totals.completion_tokens
                if totals.unsettled:
                    call.unsettled.add(name)
            more = _may_have_used_more(call, error)
            if more:
                call.unsettled.add(model)
            if self._totals and call.unsettled:
                self._totals.unsettled = True
            for place, (target, admission) in enumerate(call.admissions, 1):
                if place == len(call.admissions) and call.began_at is not None:
                    admission.charge("money", call.cost or 0, at_least=more or not call.told)
                elif admission.spent or (place == len(call.admissions) and more):
                    admission.charge("money", 0, at_least=True)
                admission.charge("caller", sum(used.values()), at_least=bool(call.unsettled))
                admission.charge("model", used.get(target.name, 0), at_least=target.name in call.unsettled)
            await _leave([admission for _, admission in call.admissions])

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
            if model not in call.inner:  # else the calls of own code have been counted
                caller = call.caller.label if call.caller else "app"
                metrics.tokens(model, caller, "in").inc(call.prompt_tokens)
                metrics.tokens(model, caller, "out").inc(call.completion_tokens)
                if call.cost is not None:
                    metrics.cost(model, caller).inc(call.cost / MICRO)
            if call.cost is not None and not call.stream:
                call.headers["X-Cost-USD"] = f"{call.cost / MICRO:.6f}"
        if call.translator:
            dialect = call.translator.dialect
            way = "passed_through" if dialect in call.answered_by.speaks else "translated"
            metrics.dialects(call.answered_by.name, dialect, way).inc()
        if self._span:
            self._end_span(self._span, error)
        if self._totals:
            self._totals.add(call)

    def _read(self, stream: StreamState, began_at: float) -> None:
        """Copy what the stream has said about the call."""
        call = self._call
        if stream.chunks > 1:
            pause = (perf_counter() - began_at) / (stream.chunks - 1)
            self._accounting.metrics.per_chunk(call.answered_by.name).observe(pause)
        call.response_model = stream.model
        call.finish_reasons = list(stream.finish_reasons.values())
        count_tokens(call, stream.usage, lambda: stream.seen)

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
            cost=call.cost,
        )


async def _leave(admissions: list[Admission]) -> None:
    """Leave each, though leaving another one is cancelled or fails."""
    if admissions:
        try:
            await admissions[-1].__aexit__(None, None, None)
        finally:
            await _leave(admissions[:-1])


def _sent(call: Call, target: Target) -> dict[str, Any]:
    """Return the fields that a provider gets, as far as they matter to limits; InvalidRequest if it can't get them."""
    translator = call.translator
    if translator is None or (is_passed := translator.dialect in target.speaks) == call.is_outlined:
        return target.fields(call.fields)
    return target.fields(translator.outlines() if is_passed else translator.fields)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, AppError):
        return error.kind
    return "internal_error" if isinstance(error, Exception) else "cancelled"


def _may_have_used_more(call: Call, error: BaseException | None) -> bool:
    """Return whether the model that was tried last may have used tokens that nobody has counted.

    If the client leaves, or the answer breaks, only the provider knows what it had thought and written by then. Its
    usage is final when every choice has ended.
    """
    if error is None or (call.stream and call.stream.usage and call.stream.finished):
        return False
    return call.began_at is not None or not isinstance(error, AppError)
