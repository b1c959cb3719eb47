"""Limits: what a caller, or a model, may use in a minute, and how many calls may be in flight.

Requests and tokens are counted in this process, or in a Valkey that all workers and replicas share (by the library
`limits`). Calls in flight are counted in this process.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import structlog
from limits.aio.storage import RedisStorage

from app.access.callers import Caller
from app.access.estimate import estimate
from app.access.process_storage import ProcessStorage
from app.access.shared_storage import shared_storage
from app.config import Limits, ModelEntry, Settings
from app.errors import RateLimited
from app.telemetry.metrics import Metrics

STORAGE_TIMEOUT = 1.0
"""Seconds that a call's reservation, or its settlement, may take on a shared storage.

Much longer than a storage takes: a burst of requests keeps this process busy, and must not look like a storage that has
stalled, since then each process would count for itself and let too much in.
"""
STORAGE_CONNECTIONS = 64
"""Calls that use a shared storage at once, each on a connection of its own."""
STORAGE_PAUSE = 2.0
"""Seconds after a failure of a shared storage before one call tries it again."""
UNSET_MAX_TOKENS = 1024
"""Tokens that are reserved for an answer whose length nothing bounds."""

Scope = tuple[str, str, Limits]
"""`caller` or `model`, its name, and its limits."""
Storage = ProcessStorage | RedisStorage
Held = list[Callable[[], object]]
"""What is called when a request has ended, so when its answer has been sent."""

log = structlog.get_logger("app.limits")


class Limiter:
    """Admits calls within their limits.

    Args:
        settings: `limit_storage` says where requests and tokens are counted.
        metrics: counts every decision, and shows whether the storage answers.

    Raises:
        SettingsError: the address of the storage can't work.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.metrics = metrics
        self.degraded = False
        """Whether the shared storage fails, so that this process counts for itself."""
        self.in_flight: Counter[tuple[str, str]] = Counter()
        self._own = ProcessStorage()
        self._shared: Storage | None = None
        if settings.limit_storage != "async+memory://":
            self._shared = shared_storage(settings.limit_storage, STORAGE_TIMEOUT)
        self._connections = asyncio.Semaphore(STORAGE_CONNECTIONS)
        self._retry_at = 0.0

    def admit_request(self, caller: Caller | None) -> "Admission":
        """Return a context to read a request's body in: its caller is charged with one request, not yet with tokens.

        Its `headers` are then the `prepaid` of the call that the request makes.
        """
        limits = caller.limits if caller else None
        return Admission(self, [("caller", caller.name, limits)] if caller and limits and limits.any else [], {}, "")

    def admit(self, caller: Caller | None, model: str, entry: ModelEntry, fields: dict[str, Any]) -> "Admission":
        """Return a context that a call is made in; entering it may raise RateLimited.

        Args:
            caller: who calls; None is the application itself, to which only the model's limits apply.
            model: public name of the model.
            entry: the model's row, with its limits.
            fields: the fields that the provider gets.
        """
        scopes: list[Scope] = []
        if caller and caller.limits and caller.limits.any:
            scopes.append(("caller", caller.name, caller.limits))
        if entry.any:
            scopes.append(("model", model, entry))
        return Admission(self, scopes, fields, entry.upstream)

    async def on_storage(self, work: Callable[[Storage], Awaitable[None]]) -> None:
        """Do a call's work on the shared storage, or, while that fails, on this process's own.

        Args:
            work: reserves or settles; may raise RateLimited.
        """
        if self._shared is not None:
            async with self._connections:
                if (now := time.monotonic()) >= self._retry_at:
                    probes = self.degraded
                    if probes:
                        self._retry_at = now + STORAGE_PAUSE
                    try:
                        async with asyncio.timeout(STORAGE_TIMEOUT):
                            await work(self._shared)
                    except RateLimited:
                        self._answered(probes=probes)
                        raise
                    except Exception as error:
                        self._failed(error)
                    else:
                        self._answered(probes=probes)
                        return
        await work(self._own)

    def _failed(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + STORAGE_PAUSE
        if not self.degraded:
            self.degraded = True
            self.metrics.storage_up.set(0)
            log.error("limit storage fails: each process counts for itself", error=type(error).__name__)

    def _answered(self, *, probes: bool) -> None:
        if probes:
            self.degraded = False
            self._retry_at = 0.0
            self.metrics.storage_up.set(1)
            log.info("limit storage is back")


class Admission:
    """One call's share of its limits: reserved on entering, settled on leaving.

    If `held` is a list, the places in flight of a call that was answered are given back later, by what is put into it.
    Before leaving, say by `charge` how many tokens were used. Without that, the reservation is given back.

    Attributes:
        headers: `x-ratelimit-*`, once it is entered.
        prepaid: the headers of `admit_request`, if the caller has been charged with the request already.
    """

    __slots__ = (
        *("_charged", "_fields", "_limiter", "_places", "_refused_by", "_reserved", "_scopes", "_upstream", "_used"),
        *("headers", "held", "prepaid"),
    )

    def __init__(self, limiter: Limiter, scopes: list[Scope], fields: dict[str, Any], upstream: str) -> None:
        self._upstream = upstream
        self._limiter = limiter
        self._scopes = scopes
        self._fields = fields
        self._places: list[tuple[str, str]] = []
        self._reserved: list[tuple[str, str, int, float]] = []
        self._charged: Storage | None = None
        self._refused_by = ""
        self._used: dict[str, tuple[int, bool]] = {}
        self.headers: dict[str, str] = {}
        self.held: Held | None = None
        self.prepaid: dict[str, str] | None = None

    async def __aenter__(self) -> "Admission":
        if not self._scopes:
            return self
        try:
            self._take_places()
            if any(limits.requests_per_minute or limits.tokens_per_minute for _, _, limits in self._scopes):
                await self._limiter.on_storage(self._reserve)
        except BaseException as error:
            self._leave_places()
            if self._reserved:
                await self._limiter.on_storage(self._give_back)
            if isinstance(error, RateLimited):
                self._limiter.metrics.decisions(self._refused_by, "refused").inc()
            raise
        for kind, _, _ in self._scopes if self._fields else ():
            self._limiter.metrics.decisions(kind, "admitted").inc()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self.held is not None and self._places and kind is None:
            self.held.append(self._leave_places)
        else:
            self._leave_places()
        if self._reserved:
            await self._limiter.on_storage(self._settle)

    def charge(self, kind: str, tokens: int, *, at_least: bool = False) -> None:
        """Say how many tokens were used.

        Args:
            kind: who is charged, `caller` or `model`.
            tokens: how many.
            at_least: whether there may have been more, which nobody knows; then the reservation stays.
        """
        self._used[kind] = tokens, at_least

    def _take_places(self) -> None:
        in_flight = self._limiter.in_flight
        for kind, name, limits in self._scopes:
            if limits.max_in_flight:
                if in_flight[kind, name] >= limits.max_in_flight:
                    self._refused_by = kind
                    message = f"This {kind} already has {limits.max_in_flight} calls in flight, its limit."
                    raise RateLimited(message, retry_after=1)
                in_flight[kind, name] += 1
                self._places.append((kind, name))

    def _leave_places(self) -> None:
        in_flight = self._limiter.in_flight
        for place in self._places:
            in_flight[place] -= 1
            if not in_flight[place]:
                del in_flight[place]  # callers come and go
        self._places.clear()

    async def _reserve(self, storage: Storage) -> None:
        self._reserved.clear()
        self.headers.clear()
        self.headers |= self.prepaid or {}
        self._charged = storage
        windows = []
        for kind, name, limits in self._scopes:
            if (limit := limits.requests_per_minute) and (kind == "model" or self.prepaid is None):
                key = f"requests/{kind}/{name}"
                window_start, count = await storage.get_moving_window(key, limit, 60)
                windows.append((kind, key, limit, window_start + 60))
                self._set_headers("requests", limit, limit - count - 1, window_start + 60 - _now(storage))
                if count >= limit:
                    await self._refuse(storage, kind, f"{limit} requests", window_start + 60)
            if limits.tokens_per_minute and self._fields:
                key = f"tokens/{kind}/{name}"
                cost = self._estimate()
                count = await storage.incr(key, 60, amount=cost)
                reset_at = await storage.get_expiry(key)
                self._reserved.append((kind, key, cost, reset_at))
                remaining = limits.tokens_per_minute - count
                self._set_headers("tokens", limits.tokens_per_minute, remaining, reset_at - _now(storage))
                if cost > limits.tokens_per_minute:
                    await self._refuse(storage, kind, f"{limits.tokens_per_minute} tokens", None)
                if count > limits.tokens_per_minute:
                    await self._refuse(storage, kind, f"{limits.tokens_per_minute} tokens", reset_at)
        for kind, key, limit, reset_at in windows:  # last, so that a call that one limit refuses is counted by none
            if not await storage.acquire_entry(key, limit, 60):  # another process was faster
                await self._refuse(storage, kind, f"{limit} requests", reset_at)

    async def _refuse(self, storage: Storage, kind: str, limit: str, reset_at: float | None) -> None:
        self._refused_by = kind
        await self._give_back(storage)
        if reset_at is None:
            raise RateLimited(
                f"This request alone could use more than this {kind}'s limit of {limit} a minute: lower max_tokens.",
                headers=self.headers | {"X-Should-Retry": "false"},
            )
        wait = max(1.0, reset_at - _now(storage))
        message = f"This {kind} has reached its limit of {limit} a minute."
        raise RateLimited(message, retry_after=wait, headers=self.headers)

    async def _give_back(self, storage: Storage) -> None:
        """Give back what was reserved, for a call that is not made; nothing twice, whenever this is cancelled."""
        while self._reserved:
            _, key, cost, window_end = self._reserved.pop()
            if self._may_refund(storage, window_end):
                await storage.incr(key, 60, amount=-cost)

    def _may_refund(self, storage: Storage, window_end: float) -> bool:
        """Return whether the window that was charged still runs, whose end a Valkey tells to the second."""
        return storage is self._charged and _now(storage) < window_end - 1

    async def _settle(self, storage: Storage) -> None:
        for kind, key, cost, window_end in self._reserved:
            used, at_least = self._used.get(kind, (0, False))
            owed = (max(used, cost) if at_least else used) - (cost if storage is self._charged else 0)
            if owed > 0 or (owed < 0 and self._may_refund(storage, window_end)):
                await storage.incr(key, 60, amount=owed)

    def _estimate(self) -> int:
        """Return the tokens that a call may take: four bytes are about one, and the answer's bound."""
        bounds = [self._fields.get("max_completion_tokens"), self._fields.get("max_tokens")]
        bound = max((bound for bound in bounds if bound), default=UNSET_MAX_TOKENS)
        answer = bound * (self._fields.get("n") or 1) if "messages" in self._fields else 0
        return estimate(self._fields, self._upstream) + answer

    def _set_headers(self, what: str, limit: int, remaining: int, seconds: float) -> None:
        """Set OpenAI's `x-ratelimit-*` headers, for the tightest limit where there are two."""
        remaining = max(0, remaining)
        known = self.headers.get(f"x-ratelimit-remaining-{what}")
        if known is None or remaining < int(known):
            self.headers[f"x-ratelimit-limit-{what}"] = str(limit)
            self.headers[f"x-ratelimit-remaining-{what}"] = str(remaining)
            self.headers[f"x-ratelimit-reset-{what}"] = f"{max(0.0, seconds):.3f}s"


def _now(storage: Storage) -> float:
    """Return the time by the clock of a storage: the wall clock tells the same time to all who share one."""
    return time.monotonic() if isinstance(storage, ProcessStorage) else time.time()
