"""Prices of models, proposed from the list that LiteLLM brings: `python -m app prices`."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.config import ModelEntry, SettingsError
from app.quotas import MICRO

NAMES = {
    "input": "input_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "output": "output_cost_per_token",
    "reasoning": "output_cost_per_reasoning_token",
}
"""LiteLLM's names of our prices, which are in US dollars a token."""
TIER = r"(_above_\d+k_tokens)?"
"""Of several prices by the length of the context, the dearest is taken."""


def price_list() -> dict[str, Any]:
    """Return LiteLLM's list. It is read as a file: to import LiteLLM takes seconds.

    Raises:
        SettingsError: there is none.
    """
    found = find_spec("litellm")
    folders = (found.submodule_search_locations or []) if found else []
    try:
        text = Path(*folders[:1], "model_prices_and_context_window_backup.json").read_bytes()
        listed: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        raise SettingsError("the installed LiteLLM has no list of prices") from None
    return listed


def proposed(models: Mapping[str, ModelEntry], listed: Mapping[str, Any]) -> dict[str, dict[str, float] | None]:
    """Return a price for each model that needs one; None where the list has none.

    Args:
        models: the model table. Models at an address of one's own are left out: whoever runs them knows what they cost.
        listed: LiteLLM's list.
    """
    prices: dict[str, dict[str, float] | None] = {}
    for name, entry in models.items():
        provider, _, model = entry.upstream.rpartition("/")
        provider = provider.partition("/")[0] or "openai"
        if provider in ("demo", "own") or entry.api_base:
            continue
        known = (listed.get(entry.upstream), listed.get(model), listed.get(entry.upstream.partition("/")[2]))
        rows = (row for row in known if row and str(row.get("litellm_provider")).startswith(provider))
        prices[name] = next((price for row in rows if (price := _price(row))), None)
    return prices


def _price(row: Mapping[str, Any]) -> dict[str, float] | None:
    price = {}
    for ours, theirs in NAMES.items():
        tiers = [row[name] for name in row if re.fullmatch(theirs + TIER, name) and row[name]]
        if tiers:
            price[ours] = round(max(tiers) * MICRO, 6)
    if row.get("mode") == "embedding":
        price.pop("output", None)
    elif "output" not in price:
        return None
    for special, usual in (("cache_write", "input"), ("reasoning", "output")):  # else a price of another tier
        if price.get(special, 0) <= price.get(usual, 0):
            price.pop(special, None)
    if row.get("input_cost_per_image"):
        price["image"] = row["input_cost_per_image"]
    return price if "input" in price else None


def as_toml(price: Mapping[str, float]) -> str:
    """Return a price as a line of a row."""
    prices = [f"{name} = {value:.6f}".rstrip("0").rstrip(".") for name, value in price.items()]
    return "price = { " + ", ".join(prices) + " }"


def with_prices(text: str, prices: Mapping[str, Mapping[str, float]]) -> tuple[str, list[str]]:
    """Return a settings file with prices in its rows, all else as it was; and the models that have no row in it.

    Args:
        text: the file.
        prices: a price for each model.

    Raises:
        SettingsError: its rows are written in a way that is not understood here.
    """
    lines, missing, wanted = text.splitlines(keepends=True), [], tomllib.loads(text)
    line_end = "\r\n" if "\r\n" in text else "\n"
    for name, price in prices.items():
        start = next((place for place, line in enumerate(lines) if _heads(line, name)), None)
        if start is None:
            missing.append(name)
            continue
        wanted["models"][name]["price"] = dict(price)
        end = next((at for at in range(start + 1, len(lines)) if lines[at].startswith("[")), len(lines))
        old = [at for at in range(start + 1, end) if re.match(r"\s*price\s*=", lines[at])]
        at = old[0] if old else start + 1
        lines[at : at + len(old)] = [as_toml(price) + line_end]
    try:
        is_right = tomllib.loads("".join(lines)) == wanted
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        raise SettingsError("the file can't be edited here: write these prices into its rows by hand")
    return "".join(lines), missing


def _heads(line: str, name: str) -> bool:
    try:
        return bool(line.startswith("[") and name in tomllib.loads(line)["models"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return False


def written(entry: ModelEntry) -> dict[str, float] | None:
    """Return the price that stands in a row."""
    return entry.price.model_dump(exclude_unset=True) if entry.price else None


def changes(models: Mapping[str, ModelEntry], prices: Mapping[str, Mapping[str, float] | None]) -> Iterator[str]:
    """Yield a sentence for each price that is not the one of the list, or that the list does not have."""
    for name, price in prices.items():
        has = written(models[name])
        if price is None and has is None:
            yield f"{name}: LiteLLM's list has no price for {models[name].upstream}. Write one into its row by hand."
        elif price is not None and price != has:
            yield f"{name}: {as_toml(price)}" + (f" (it was: {as_toml(has)})" if has else "")
