"""What a call has used: tokens and money, as its provider counts them, else estimated."""

from collections.abc import Callable
from math import ceil
from typing import Any

from app.access.estimate import estimate, images_in
from app.llm.call import Call

MOST_TOKENS = 10**9
"""Fewer than this has every request and every answer."""
DETAILS = {"prompt_tokens_details": "cached_tokens", "completion_tokens_details": "reasoning_tokens"}
"""Parts of a usage, and what is added up of them."""


def count_tokens(call: Call, usage: object, seen: Callable[[], int]) -> None:
    """Record how many tokens a call took, and what it costs.

    What its provider does not tell, or what can't be so, is estimated. What an own model takes is the sum of the calls
    that it has made, exactly. Some providers leave what a model thought out of `completion_tokens`, and count it in
    `total_tokens` alone.

    Args:
        call: the call.
        usage: the provider's.
        seen: returns about how many tokens of the answer have come.
    """
    if inner := call.inner.get(call.answered_by.name):
        call.prompt_tokens, call.completion_tokens, call.cost = inner.prompt_tokens, inner.completion_tokens, inner.cost
        call.details = inner.details
        return
    told = usage if isinstance(usage, dict) else {}
    for group, name in DETAILS.items():
        if isinstance(details := told.get(group), dict):
            call.details[name] = _count(details.get(name))
    prompt, completion = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    total = _count(told.get("total_tokens"))
    call.told = bool((prompt or total > completion > 0) and (completion or total > prompt or call.operation != "chat"))
    if not prompt:
        asked = estimate(call.fields, call.target.entry.upstream)
        prompt = total - completion if total > completion > 0 else min(asked, total or asked)
    call.prompt_tokens = prompt
    call.completion_tokens = max(0, completion, total - prompt) or seen()
    call.cost = _cost(call, told)


def _cost(call: Call, told: dict[str, Any]) -> int | None:
    """Return what a call costs, in micro-dollars; None if its model has no price, or only one of embeddings."""
    price = call.answered_by.entry.price
    if price is None or (price.output is None and call.operation == "chat"):
        return None
    asked = told.get("prompt_tokens_details")
    asked = asked if isinstance(asked, dict) else {}
    written = (told.get("cache_creation_input_tokens"), asked.get("cache_write_tokens"))
    return price.cost(
        call.prompt_tokens,
        call.completion_tokens if call.operation == "chat" else 0,
        cached=call.details.get("cached_tokens", 0),
        written=max(map(_count, (*written, asked.get("cache_creation_tokens")))),
        reasoning=call.details.get("reasoning_tokens", 0),
        images=images_in(call.fields) if price.image else 0,
    )


def _count(told: Any) -> int:
    return ceil(told) if type(told) in (int, float) and 0 < told < MOST_TOKENS else 0
