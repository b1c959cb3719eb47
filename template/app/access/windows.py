"""Windows: what is counted against one limit, and until when."""

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple

from app.errors import BudgetExceeded, RateLimited
from app.quotas import MICRO, Period

DAY = 86_400
MINUTE = 60

Unit = Literal["requests", "tokens"] | Period
"""What is counted: requests or tokens of a minute, or micro-dollars of a day or a month."""


class Window(NamedTuple):
    """One limit that a call is counted against.

    Attributes:
        unit: what is counted.
        kind: whose limit it is: `caller`, `model`, or `service`.
        name: the caller's or the model's.
        limit: how much there may be in the window.
        amount: how much the call adds.
        key: names the window in a storage; that of a day or a month has its date.
        end: when a day or a month ends, in seconds of Unix time; 0 where no money is counted. A minute ends 60 s after
            its first use; that of requests moves on with the time.
    """

    unit: Unit
    kind: str
    name: str
    limit: int
    amount: int
    key: str
    end: int = 0


Count = tuple[int, float, float]
"""What a storage has counted in one window; a plain tuple, for speed.

How much there was before the call; the seconds until the window ends, or of requests until there is room for one more;
and when it ends, by the storage's clock, which tells it from later windows with the same key.
"""


@lru_cache(maxsize=4096)  # of callers, models and subjects of tokens: the window of one is always the same
def of_requests(kind: str, name: str, limit: int) -> Window:
    """Return the window of one request in a minute."""
    return Window("requests", kind, name, limit, 1, f"requests/{kind}/{name}")


def of_tokens(kind: str, name: str, limit: int, amount: int) -> Window:
    """Return the window of tokens in a minute."""
    return Window("tokens", kind, name, limit, amount, f"tokens/{kind}/{name}")


def in_calendar(unit: Period, kind: str, name: str, limit: int, amount: int) -> Window:
    """Return the window of today, or of this month, in UTC."""
    date, end = calendar(unit, int(time.time()) // DAY)
    return Window(unit, kind, name, limit, amount, f"usd/{date}/{kind}/{name}", end)


@lru_cache(maxsize=8)
def calendar(unit: Period, day: int) -> tuple[str, int]:
    """Return the date of a day, or of its month, and when it ends in Unix time.

    Args:
        unit: `day` or `month`.
        day: days since 1970.
    """
    date = datetime.fromtimestamp(day * DAY, UTC)
    if unit == "day":
        return f"{date:%Y-%m-%d}", (day + 1) * DAY
    following = (date.replace(day=1) + timedelta(days=31)).replace(day=1)
    return f"{date:%Y-%m}", int(following.timestamp())


def refusal(window: Window, count: Count, headers: dict[str, str]) -> RateLimited:
    """Return the error for a call that a window has too little room for.

    Args:
        window: the window.
        count: what is counted in it.
        headers: of the response.
    """
    before, wait, _ = count
    if not window.end:
        limit = f"{window.limit} {window.unit}"
        if window.amount > window.limit:
            message = f"This request alone could use more than this {window.kind}'s limit of {limit} a minute"
            return RateLimited(f"{message}: lower max_tokens.", headers=headers | {"X-Should-Retry": "false"})
        message = f"This {window.kind} has reached its limit of {limit} a minute."
        return RateLimited(message, retry_after=max(1.0, wait), headers=headers)
    left = window.limit - before
    end = f"{datetime.fromtimestamp(window.end, UTC):%Y-%m-%d %H:%M} UTC"
    of = f" of {_dollars(window.limit)}" if window.kind == "caller" else ""  # the others' are no caller's business
    budget = f"this {window.kind}'s budget{of} for the {window.unit}, which ends at {end}"
    if left <= 0:
        message = f"Nothing is left of {budget}."
    else:
        rest = f"the {_dollars(left)} that is left" if window.kind == "caller" else "what is left"
        message = f"This request could cost {_dollars(window.amount)}, more than {rest} of {budget}"
        message += ": send a lower max_tokens."
    retry_after = None if window.amount > window.limit else max(1.0, wait)
    return BudgetExceeded(message, retry_after=retry_after, headers=headers)


def _dollars(micro: int) -> str:
    return f"${micro / MICRO:,.6f}".rstrip("0").rstrip(".")
