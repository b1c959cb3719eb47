"""Limits: what a caller, a model or the whole service may use and spend, and how many calls may be in flight.

Requests, tokens and money are counted in this process, or in a Valkey that all workers and replicas share. Calls in
flight are counted in this process.
"""

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import structlog

from app.access.callers import Caller, Scope
from app.access.estimate import images_in, most_tokens
from app.access.limit_storage import Change, LimitStorage, Storage
from app.access.windows import Count, Window, in_calendar, of_requests, of_tokens, refusal
from app.config import JWT_NAMES, Limits, ModelEntry, Settings
from app.errors import ModelNotPriced, RateLimited
from app.quotas import MICRO
from app.telemetry.metrics import Metrics

UNSET_MAX_TOKENS = 1024
"""Tokens that are reserved for an answer whose length nothing bounds. Of money, `max_tokens_limit` is the bound."""
WITHOUT_PRICE = ("demo/", "own/")
"""What costs nothing itself. The calls that own code makes are charged one by one."""

Held = list[Callable[[], object]]
"""What is called when a request has ended, so when its answer has been sent."""
Turn = Literal["first", "fallback", "retry"]

LIMIT, REMAINING, RESET = (
    {unit: f"x-ratelimit-{what}-{unit}" for unit in ("requests", "tokens")} for what in ("limit", "remaining", "reset")
)
"""Names of OpenAI's headers, by what is counted."""

log = structlog.get_logger("app.limits")


def scopes_of(settings: Settings) -> list[Scope]:
    """Return all that have limits and a name in the settings: callers, models, and the service last."""
    service = Limits(usd_per_day=settings.usd_per_day, usd_per_month=settings.usd_per_month)
    callers: list[Scope] = [("caller", *row) for row in settings.callers.items()]
    return [*callers, *(("model", *row) for row in settings.models.items()), ("service", "all", service)]


def warn_of_budgets(settings: Settings) -> None:
    """Log what keeps budgets from doing what they are for."""
    jwt = settings.auth.jwt
    if not any(limits.budgets for _, _, limits in scopes_of(settings)) and not (jwt and jwt.budgets):
        return
    if settings.limit_storage == "async+memory://":
        log.warning("budgets are counted in each process's memory, and start anew with it: set limit_storage")
    rows = settings.models.items()
    unpriced = [name for name, row in rows if row.price is None and not row.upstream.startswith(WITHOUT_PRICE)]
    if unpriced:
        log.warning("models without a price are refused where a budget applies", models=unpriced)


class Limiter:
    """Admits calls within their limits.

    Args:
        settings: `limit_storage` says where requests, tokens and money are counted.
        metrics: counts every decision, and shows whether the storage answers.

    Raises:
        SettingsError: the address of the storage can't work.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.metrics = metrics
        self.in_flight: Counter[tuple[str, str]] = Counter()
        *_, (_, _, service) = scopes = scopes_of(settings)
        self.service = service.money
        self.max_tokens = settings.max_tokens_limit
        self.storage = LimitStorage(settings, metrics)
        for kind, name, limits in scopes:
            for unit, limit in limits.budgets:
                metrics.budget_limit(kind, name, unit).set(limit / MICRO)

    def admit_request(self, caller: Caller | None) -> "Admission":
        """Return a context to read a request's body in: its caller is charged with one request, not yet with tokens.

        Its `headers` are then the `prepaid` of the call that the request makes.
        """
        limits = caller.limits if caller else None
        return Admission(self, [("caller", caller.name, limits)] if caller and limits and limits.any else [], {})

    def admit(
        self, caller: Caller | None, model: str, entry: ModelEntry, fields: dict[str, Any], turn: Turn = "first"
    ) -> "Admission":
        """Return a context that a call is made in. Entering it may raise an error.

        Args:
            caller: who calls; None is the application itself, to which only the limits of models and service apply.
            model: public name of the model.
            entry: the model's row, with its limits.
            fields: the fields that the provider gets.
            turn: `first` for the model that was asked for. What follows is charged with money like it; a `fallback`
                also counts for its own other limits, and a `retry` for none.

        Raises, on entering:
            RateLimited, BudgetExceeded: a limit, or a budget, has too little room.
            ModelNotPriced: a budget applies, and nobody has said what the model costs.
            BudgetUnavailable: a budget applies, and can't be read.
        """
        scopes: list[Scope] = []
        if caller:
            limits = caller.limits if turn == "first" or not caller.limits else caller.limits.money
            if limits and limits.any:
                scopes.append(("caller", caller.name, limits))
            scopes += caller.budgets
        limits = entry.money if turn == "retry" else entry
        if limits and limits.any:
            scopes.append(("model", model, limits))
        if self.service:
            scopes.append(("service", "all", self.service))
        return Admission(self, scopes, fields, entry)


class Admission:
    """One call's share of its limits: reserved on entering, settled on leaving.

    If `held` is a list, the places in flight of a call that was answered are given back later, by what is put into it.
    Before leaving, say by `charge` how much was used. Without that, the reservation is given back.

    Attributes:
        headers: `x-ratelimit-*`, once it is entered.
        prepaid: the headers of `admit_request`, if the caller has been charged with the request already.
        spent: whether the model may have used more than anybody has told, so that the reserved money stays.
    """

    __slots__ = (
        *("_charged", "_entry", "_fields", "_limiter", "_places", "_refused_by", "_reserved", "_scopes", "_used"),
        *("headers", "held", "prepaid", "spent"),
    )

    def __init__(
        self, limiter: Limiter, scopes: list[Scope], fields: dict[str, Any], entry: ModelEntry | None = None
    ) -> None:
        self._entry = entry
        self._limiter = limiter
        self._scopes = scopes
        self._fields = fields
        self._places: list[tuple[str, str]] = []
        self._reserved: list[tuple[Window, float]] = []
        self._charged: Storage | None = None
        self._used: dict[str, tuple[int, bool]] = {}
        self.headers: dict[str, str] = {}
        self.held: Held | None = None
        self.prepaid: dict[str, str] | None = None
        self.spent = False

    async def __aenter__(self) -> "Admission":
        if not self._scopes:
            return self
        try:
            if windows := self._enter_scopes():
                if shared := self._limiter.storage.reserve(windows, self._reserve):
                    await shared
            elif self.prepaid:
                self.headers |= self.prepaid
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            if isinstance(error, RateLimited):
                self._limiter.metrics.decisions(self._refused_by, "refused").inc()
            raise
        for kind, _, _ in self._scopes if self._fields else ():
            self._limiter.metrics.decisions(kind, "admitted").inc()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self.held is not None and self._places and kind is None:
            self.held.append(self.leave_places)
        else:
            self.leave_places()
        if self._reserved and (shared := self._limiter.storage.settle(self._changes, self._settled)):
            await shared

    def charge(self, what: str, used: int, *, at_least: bool = False) -> None:
        """Say how much was used.

        Args:
            what: `caller` or `model`, which are charged with tokens; or `money`, with which all are.
            used: how many tokens, or micro-dollars.
            at_least: whether there may have been more, which nobody knows; then the reservation stays.
        """
        self._used[what] = used, at_least

    def leave_places(self) -> None:
        """Give back the places in flight."""
        in_flight = self._limiter.in_flight
        for place in self._places:
            in_flight[place] -= 1
            if not in_flight[place]:
                del in_flight[place]  # callers come and go
        self._places.clear()

    def _enter_scopes(self) -> list[Window]:
        """Take the places in flight; return the windows that the call is counted in."""
        in_flight, fields, entry, tokens, money = self._limiter.in_flight, self._fields, self._entry, 0, None
        windows = []
        for kind, name, limits in self._scopes:
            if limits.max_in_flight:
                if in_flight[kind, name] >= limits.max_in_flight:
                    self._refused_by = kind
                    message = f"This {kind} already has {limits.max_in_flight} calls in flight, its limit."
                    raise RateLimited(message, retry_after=1)
                in_flight[kind, name] += 1
                self._places.append((kind, name))
            if (limit := limits.requests_per_minute) and (kind == "model" or self.prepaid is None):
                windows.append(of_requests(kind, name, limit))
            if entry is None or not fields:
                continue
            if limit := limits.tokens_per_minute:
                tokens = tokens or sum(most_tokens(fields, entry.upstream, UNSET_MAX_TOKENS))
                windows.append(of_tokens(kind, name, limit, tokens))
            for unit, limit in limits.budgets if not entry.upstream.startswith(WITHOUT_PRICE) else ():
                money = self._most(entry) if money is None else money
                windows.append(in_calendar(unit, kind, name, limit, money))
        return windows

    def _reserve(self, storage: Storage, windows: list[Window], refused: int | None, counts: list[Count]) -> None:
        """Keep what a storage has counted, or raise an error if it has refused."""
        self._reserved.clear()
        self.headers.clear()
        self.headers |= self.prepaid or {}
        self._charged = storage
        for window, (before, wait, end) in zip(windows, counts, strict=True):
            if window.end:
                self._show(window, before + (window.amount if refused is None else 0))
            else:
                self._set_headers(window, max(0, window.limit - before - window.amount), wait)
            if refused is None and window.unit != "requests":
                self._reserved.append((window, end))
        if refused is not None:
            window, count = windows[refused], counts[refused]
            self._refused_by = window.kind
            if window.end and window.amount <= window.limit and not window.name.startswith(JWT_NAMES):
                self._limiter.metrics.budget_refusals(window.kind, window.name, window.unit).inc()
            raise refusal(window, count, self.headers)

    def _changes(self, storage: Storage) -> list[Change]:
        """Return how what was used differs from what a storage has counted."""
        changes = []
        here = storage is self._charged
        for window, end in self._reserved:
            used, at_least = self._used.get("money" if window.end else window.kind, (0, False))
            owed = (max(used, window.amount) if at_least else used) - (window.amount if here else 0)
            if owed:
                changes.append((window, owed, end if here else 0))
        return changes

    def _settled(self, changes: list[Change], totals: list[int]) -> None:
        for (window, _, _), total in zip(changes, totals, strict=True):
            if window.end:
                self._show(window, total)

    def _most(self, entry: ModelEntry) -> int:
        """Return the most that the call may cost, in micro-dollars.

        Raises:
            ModelNotPriced: nobody has said what the model costs.
        """
        price = entry.price
        if price is None or ("messages" in self._fields and price.output is None):
            message = "This model has no price here, so calls with a budget can't use it. Whoever runs this service can"
            raise ModelNotPriced(f"{message} set one (`python -m app prices`).")
        asked, answer = most_tokens(self._fields, entry.upstream, entry.max_tokens_limit or self._limiter.max_tokens)
        return price.most(asked, answer, images_in(self._fields) if price.image else 0)

    def _show(self, window: Window, used: int) -> None:
        """Show a budget in metrics. Subjects of tokens have none there, since they are many."""
        if not window.name.startswith(JWT_NAMES):
            metrics = self._limiter.metrics
            metrics.budget_used(window.kind, window.name, window.unit).set(used / MICRO)
            metrics.budget_ends(window.kind, window.name, window.unit).set(window.end)

    def _set_headers(self, window: Window, remaining: int, seconds: float) -> None:
        """Set OpenAI's `x-ratelimit-*` headers, for the tightest limit where there are two."""
        unit, headers = window.unit, self.headers
        known = headers.get(REMAINING[unit])
        if known is None or remaining < int(known):
            headers[LIMIT[unit]] = str(window.limit)
            headers[REMAINING[unit]] = str(remaining)
            headers[RESET[unit]] = f"{max(0.0, seconds):.3f}s"
