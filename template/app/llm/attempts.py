"""Retries and fallbacks: the one place where a call is tried again. Only ever before its first byte."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from random import random
from typing import TypeVar, cast

from app.callers import Caller
from app.errors import InvalidRequest, ProviderError
from app.llm.clock import Clock
from app.llm.cooldowns import Cooldowns
from app.llm.record import CallRecord
from app.llm.targets import Target
from app.metrics import Metrics

FIRST_PAUSE = 0.4
"""Seconds before the first retry, at the most; each further pause is twice as long."""
LONGEST_PAUSE = 5.0
"""Seconds; a pause of our own is never longer."""
MAX_RETRY_AFTER = 10.0
"""Seconds. A provider that asks for a longer wait is not waited for: its error goes on with its `Retry-After`."""

T = TypeVar("T")


class Attempts:
    """Tries a model, and then its fallbacks.

    Args:
        targets: the model table.
        retries: how often one model is tried again.
        metrics: told of every attempt.
    """

    def __init__(self, targets: Mapping[str, Target], retries: int, metrics: Metrics) -> None:
        self._targets = targets
        self._metrics = metrics
        self._retries = retries
        self.cooldowns = Cooldowns()

    async def run(
        self,
        target: Target,
        caller: Caller | None,
        record: CallRecord,
        clock: Clock,
        start: Callable[[Target], Awaitable[T]],
    ) -> T:
        """Return what `start` gives for a model, or for the first of its fallbacks that begins to answer.

        Args:
            target: the model that was asked for.
            caller: who may use only some of the fallbacks; None may use all.
            record: told what was tried.
            clock: the call's time limits.
            start: begins an answer; what it returns has sent nothing to the client yet.

        Raises:
            ProviderError: the last one, when every model has failed.
        """
        failure: ProviderError | None = None
        failed = ""
        for candidate in self._candidates(target, caller):
            if failure:
                self._metrics.fallbacks.labels(failed).inc()
            try:
                answer = await self._retrying(candidate, record, clock, start)
            except InvalidRequest:
                if failure is None:
                    raise
                # a fallback that can't take this request is no reason to blame the request
            except ProviderError as error:
                if not error.fall_back:
                    self._is_well(candidate)
                    if failure is None:
                        raise
                    continue
                failure, failed = error, candidate.name
                self.cooldowns.failed(failed)
                self._metrics.cooling.labels(failed).set(self.cooldowns.active(failed))
                if clock.over:
                    raise
            else:
                self._is_well(candidate)
                record.headers["X-Model"] = candidate.name.encode().decode("latin-1")  # as headers are
                return answer
        raise cast(ProviderError, failure)  # there is always one candidate

    def _is_well(self, target: Target) -> None:
        if self.cooldowns.answered(target.name):
            self._metrics.cooling.labels(target.name).set(0)

    def _candidates(self, target: Target, caller: Caller | None) -> Iterator[Target]:
        """Yield a model and its fallbacks, without those that are cooling down, unless none is left.

        Whether a model cools down is asked when its turn has come, since the one who hears no is its probe.
        """
        names = dict.fromkeys(target.entry.fallbacks)
        fallbacks = [self._targets[name] for name in names if caller is None or caller.may_use(name)]
        candidates = [target, *fallbacks]
        left_alone = 0
        for candidate in candidates:
            if self.cooldowns.cooling(candidate.name):
                left_alone += 1
            else:
                yield candidate
        if left_alone == len(candidates):
            yield from candidates

    async def _retrying(
        self, target: Target, record: CallRecord, clock: Clock, start: Callable[[Target], Awaitable[T]]
    ) -> T:
        for attempt in itertools.count():
            record.tries(target)
            if attempt:
                self._metrics.retries.labels(target.name).inc()
            try:
                target.check_configured()
                return await start(target)  # its end is counted by the one who reads it
            except ProviderError as error:
                self._metrics.upstream.labels(target.name, error.kind).inc()
                pause = pause_after(error, attempt)
                if not error.retry or attempt == self._retries or pause is None or pause >= clock.remaining():
                    raise
            except asyncio.CancelledError:
                self._metrics.upstream.labels(target.name, "cancelled").inc()
                raise
            await asyncio.sleep(pause)
        raise AssertionError


def pause_after(failure: ProviderError, attempt: int) -> float | None:
    """Return the seconds before the next try: exponential with jitter, or as the provider says; None if too long."""
    if failure.retry_after is None:
        return min(FIRST_PAUSE * float(2**attempt), LONGEST_PAUSE) * (0.5 + random() / 2)
    return failure.retry_after if failure.retry_after <= MAX_RETRY_AFTER else None
