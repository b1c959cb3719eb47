"""Quotas: what a caller, a model or the whole service may use, and what models cost. Groups of settings."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Dollars = Annotated[float, Field(ge=0, le=1_000_000)]
Budget = Annotated[float, Field(ge=0.000_001, le=1_000_000_000)]
"""US dollars, at least one micro-dollar."""
MICRO = 1_000_000
Period = Literal["day", "month"]


class Group(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
        str_strip_whitespace=True,
    )


class Limits(Group):
    """What one caller, or one model, may use. None means no limit. Days and months are those of UTC."""

    requests_per_minute: int | None = Field(default=None, gt=0)
    tokens_per_minute: int | None = Field(default=None, gt=0)
    max_in_flight: int | None = Field(default=None, gt=0)
    usd_per_day: Budget | None = None
    usd_per_month: Budget | None = None

    @cached_property
    def any(self) -> bool:
        """Whether anything is limited."""
        return any((self.requests_per_minute, self.tokens_per_minute, self.max_in_flight, self.budgets))

    @cached_property
    def budgets(self) -> tuple[tuple[Period, int], ...]:
        """The budgets that are set, in whole micro-dollars."""
        given: tuple[tuple[Period, float | None], ...] = (("day", self.usd_per_day), ("month", self.usd_per_month))
        return tuple((period, round(dollars * MICRO)) for period, dollars in given if dollars)

    @cached_property
    def money(self) -> "Limits | None":
        """The budgets without the other limits; None if there are none."""
        return Limits(usd_per_day=self.usd_per_day, usd_per_month=self.usd_per_month) if self.budgets else None


class Price(Group):
    """What a model costs, in US dollars for a million tokens.

    Attributes:
        input: tokens of the request.
        output: tokens of the answer; None for a model that only makes embeddings.
        cached: tokens of the request that the provider had in its cache; None takes `input`.
        cache_write: tokens of the request that it has put there; None takes `input`.
        reasoning: tokens of the answer that are thoughts; None takes `output`.
        image: one image of the request, in US dollars, on top of its tokens.
    """

    input: Dollars
    output: Dollars | None = None
    cached: Dollars | None = None
    cache_write: Dollars | None = None
    reasoning: Dollars | None = None
    image: Dollars = 0

    @cached_property
    def _rates(self) -> tuple[int, ...]:
        """Each price in millionths of a micro-dollar, so that sums are exact: five for a token, one for an image."""
        asked = (self.input if price is None else price for price in (self.input, self.cached, self.cache_write))
        answered = (self.output or 0 if price is None else price for price in (self.output, self.reasoning))
        return (*(round(price * MICRO) for price in (*asked, *answered)), round(self.image * MICRO * MICRO))

    def cost(
        self, prompt: int, completion: int, *, cached: int = 0, written: int = 0, reasoning: int = 0, images: int = 0
    ) -> int:
        """Return what a call costs, in micro-dollars, rounded up.

        Args:
            prompt: tokens of the request, cached and written ones among them.
            completion: tokens of the answer, reasoning among them.
            cached: tokens that were read from a cache.
            written: tokens that were written to a cache.
            reasoning: tokens of thoughts.
            images: images of the request.
        """
        cached = min(cached, prompt)
        written = min(written, prompt - cached)
        reasoning = min(reasoning, completion)
        counts = (prompt - cached - written, cached, written, completion - reasoning, reasoning, images)
        return -(-sum(count * rate for count, rate in zip(counts, self._rates, strict=True)) // MICRO)

    def most(self, prompt: int, completion: int, images: int) -> int:
        """Return the most that a call can cost, in micro-dollars, rounded up: each token at its dearest price."""
        rates = self._rates
        return -(-(prompt * max(rates[:3]) + completion * max(rates[3:5]) + images * rates[5]) // MICRO)
