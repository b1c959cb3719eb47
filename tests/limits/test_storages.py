"""A Valkey counts as a process does by itself, whatever is reserved and settled."""

import asyncio
import contextlib
import importlib
import inspect
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_servers import Valkey

import operations.servers  # noqa: F401 - makes the template importable

ProcessStorage: Any = importlib.import_module("app.access.process_storage").ProcessStorage
SharedStorage: Any = importlib.import_module("app.access.shared_storage").SharedStorage
windows: Any = importlib.import_module("app.access.windows")


class Closing(SharedStorage):  # type: ignore[misc]  # imported by name
    """One that `aclosing` closes."""

    async def aclose(self) -> None:
        await self.close()


UNITS = ("requests", "tokens", "day", "month")
NUMBERS = itertools.count()
CALLS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(UNITS), min_size=1, max_size=4, unique=True),
        st.integers(0, 60),
        st.integers(-1, 80),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as valkey:
        yield valkey


def window(unit: str, name: str, amount: int) -> Any:
    if unit == "requests":
        return windows.of_requests("caller", name, 4)
    if unit == "tokens":
        return windows.of_tokens("caller", name, 100, amount)
    return windows.in_calendar(unit, "caller", name, 100, amount)


async def told(answer: Any) -> Any:
    """Return what a storage answers: a process's own at once, a shared one when it has been waited for."""
    return await answer if inspect.isawaitable(answer) else answer


async def played(storage: Any, name: str, calls: list[tuple[list[str], int, int]]) -> list[Any]:
    """Return what a storage tells of calls: each is reserved, and settled with what it took, or -1 for never."""
    seen = []
    for units, amount, took in calls:
        asked = [window(unit, name, amount) for unit in units]
        refused, counts = await told(storage.reserve(asked))
        seen.append((refused, [(before, round(wait / 30)) for before, wait, _ in counts]))
        if refused is None and took >= 0:
            reserved = [
                (w, took - amount, end) for w, (_, _, end) in zip(asked, counts, strict=True) if w.unit != "requests"
            ]
            if reserved:
                seen.append(await told(storage.settle(reserved)))
    money = [window(unit, name, 0) for unit in ("day", "month")]
    _, counts = await told(storage.reserve(money))
    left = [before for before, _, _ in counts]
    if isinstance(storage, SharedStorage):
        assert await storage.read(money) == left
    return [*seen, left]


@settings(max_examples=60, deadline=None)
@given(calls=CALLS)
def test_both_storages_count_alike(valkey: Valkey, calls: list[tuple[list[str], int, int]]) -> None:
    async def both() -> tuple[list[Any], list[Any]]:
        name = f"{time.time()}-{next(NUMBERS)}"
        async with contextlib.aclosing(Closing(f"async+valkey://127.0.0.1:{valkey.port}", 5)) as shared:
            return await played(ProcessStorage(), name, calls), await played(shared, name, calls)

    alone, together = asyncio.run(both())
    assert alone == together


def test_what_was_reserved_elsewhere_is_charged_and_gives_nothing_back(valkey: Valkey) -> None:
    async def settled(storage: Any) -> list[list[int]]:
        tokens, day = window("tokens", "elsewhere", 0), window("day", "elsewhere", 0)
        return [await told(storage.settle([(each, change, 0) for each in (tokens, day)])) for change in (-5, 30, -5, 8)]

    async def both() -> list[Any]:
        async with contextlib.aclosing(Closing(f"async+valkey://127.0.0.1:{valkey.port}", 5)) as shared:
            return [await settled(ProcessStorage()), await settled(shared)]

    assert asyncio.run(both()) == [[[0, 0], [30, 30], [30, 30], [38, 38]]] * 2
