"""Retries and fallbacks. Only here is a call tried again, and only before its first byte has been sent."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from random import random
from typing import TypeVar

import structlog

from app.errors import InvalidRequest, ProviderError, ProviderMisconfigured, ProviderNotConfigured, ProviderRefused
from app.llm.call import Call
from app.llm.circuit_breaker import CircuitBreakers
from app.llm.failures import unavailable
from app.llm.targets import Target
from app.telemetry.metrics import Metrics

FIRST_PAUSE = 0.4
"""Seconds before the first retry, at most; each further pause is twice as long."""
LONGEST_PAUSE = 5.0
"""Seconds that a pause lasts at most, unless the provider asks for more."""
MAX_RETRY_AFTER = 10.0
"""Seconds. If a provider asks for a longer wait, its error is passed on with its `Retry-After`."""

T = TypeVar("T")
Admit = Callable[[Call, Target], Awaitable[bool]]

log = structlog.get_logger("app.llm")


class Retries:
    """Tries a model, and then its fallbacks.

    Args:
        targets: the model table.
        retries: how often one model is tried again, 0 or more.
        metrics: counts every attempt.
        admit: returns whether a call may go on, to a fallback or once more, by what it may use and cost there.
    """

    def __init__(self, targets: Mapping[str, Target], retries: int, metrics: Metrics, admit: Admit) -> None:
        self._targets = targets
        self._retries = retries
        self._metrics = metrics
        self._admit = admit
        self._breakers = CircuitBreakers()

    async def run(self, call: Call, attempt: Callable[[Target], Awaitable[T]]) -> T:
        """Return what `attempt` returns for the call's model, or for the first of its fallbacks that begins to answer.

        Args:
            call: the call; each attempt is added to its `tried`.
            attempt: begins an answer; when it returns or fails, nothing has been sent to the client yet.

        Raises:
            ProviderError: every model has failed; this is the last error.
            InvalidRequest: the model that was asked for can't take this request.
        """
        failure: ProviderError | None = None
        failed: Target | None = None
        for candidate in self._candidates(call):
            if candidate is not call.target and not await self._admit(call, candidate):
                self._breakers.undecided(candidate.name, call)
                continue
            if failed:
                self._metrics.fallbacks(failed.name).inc()
                failed = None
            try:
                answer = await self._try_model(call, candidate, attempt)
            except asyncio.CancelledError:
                self._breakers.undecided(candidate.name, call)
                raise
            except (InvalidRequest, ProviderRefused) as refusal:
                if isinstance(refusal, ProviderRefused):
                    self._answered(candidate)
                else:
                    self._breakers.undecided(candidate.name, call)
                if candidate is call.target:
                    raise
                if failure is None:
                    failure = unavailable(call.target.name)  # its circuit breaker is open
                log.warning("a fallback refused the request", model=candidate.name, code=refusal.code)
            except ProviderError as error:
                failure, failed = error, candidate
                if isinstance(error, ProviderMisconfigured | ProviderNotConfigured):
                    self._breakers.undecided(candidate.name, call)  # our fault: it says nothing about the provider
                else:
                    self._breakers.failed(candidate.name, call.caller_name, unreached=error.unreached)
                self._metrics.circuit_open(candidate.name).set(self._breakers.is_open(candidate.name))
                if call.deadlines.over:
                    raise
            else:
                self._answered(candidate)
                call.headers["X-Model"] = candidate.name.encode().decode("latin-1")  # as headers are encoded
                return answer
        raise failure or unavailable(call.target.name)  # its circuit breaker is open, and its fallbacks have no room

    def _answered(self, target: Target) -> None:
        """Close a model's circuit breaker: its provider has answered, if only to refuse the request."""
        if self._breakers.succeeded(target.name):
            self._metrics.circuit_open(target.name).set(0)

    def _candidates(self, call: Call) -> Iterator[Target]:
        """Yield a call's model and those fallbacks that its caller may use.

        Those whose circuit breaker is open are left out, unless no other is left. A breaker is asked when the turn of
        its model comes, since a half-open one lets a single call through.
        """
        names = dict.fromkeys(call.target.entry.fallbacks)
        fallbacks = [self._targets[name] for name in names if call.caller is None or call.caller.may_use(name)]
        candidates = [call.target, *fallbacks]
        skipped = 0
        for candidate in candidates:
            if self._breakers.lets_through(candidate.name, call.caller_name, call):
                yield candidate
            else:
                skipped += 1
        if skipped == len(candidates):
            yield from candidates

    async def _try_model(self, call: Call, target: Target, attempt: Callable[[Target], Awaitable[T]]) -> T:
        """Return what `attempt` returns for one model, which is tried again until its retries are used up."""
        for number in itertools.count():
            call.tried.append(target)
            if number:
                self._metrics.retries(target.name).inc()
            try:
                target.check_configured()
                return await attempt(target)  # success is counted by AccountedCall, when the answer ends
            except ProviderError as error:
                if error.spent:
                    call.spent(target)
                self._metrics.upstream_calls(target.name, error.kind).inc()
                pause = pause_after(error, number)
                if not error.retry or number == self._retries or pause is None or pause >= call.deadlines.remaining():
                    raise
                if error.spent and not await self._admit(call, target):
                    raise
            except asyncio.CancelledError:
                self._metrics.upstream_calls(target.name, "cancelled").inc()
                raise
            await asyncio.sleep(pause)
        raise AssertionError


def pause_after(failure: ProviderError, attempt: int) -> float | None:
    """Return the seconds before the next attempt, or None where the provider asks for more than MAX_RETRY_AFTER.

    Exponential backoff with jitter, unless the provider says how long.

    Args:
        failure: why the last attempt failed.
        attempt: its number, from 0.
    """
    if failure.retry_after is None:
        return min(FIRST_PAUSE * float(2**attempt), LONGEST_PAUSE) * (0.5 + random() / 2)
    return failure.retry_after if failure.retry_after <= MAX_RETRY_AFTER else None
