"""Garbage in reference cycles, as LiteLLM leaves it with each call, does not keep many large bodies."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from app.http.bodies import BodyMemory

MEGABYTE = 1024 * 1024


class Request:
    """What a body's memory knows of a request."""

    def __init__(self) -> None:
        self.caller = "a"
        self.held: list[Any] = []


class Cycle:
    """What only a collection frees."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("size", [MEGABYTE, 20 * MEGABYTE])
def test_garbage_of_large_requests_is_freed_before_it_is_much(size: int) -> None:
    memory, left = BodyMemory(100 * MEGABYTE), []
    for _ in range(200 * MEGABYTE // size):
        request: Any = Request()
        memory.hold(request, size)
        left.append(weakref.ref(Cycle()))
        for leave in request.held:
            leave()
    assert sum(cycle() is not None for cycle in left) * size < 64 * MEGABYTE
