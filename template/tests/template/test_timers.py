"""A time limit that moves with every request hardly touches the event loop, and is kept to."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from app.llm.timers import Timer


class Loop:
    """An event loop's clock and timers, which go on when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: dict[int, tuple[float, Callable[[], None]]] = {}
        self.made = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Any:
        number = next(self.made)
        self.timers[number] = when, call
        loop = self

        class Handle:
            def cancel(self) -> None:
                loop.timers.pop(number, None)

        return Handle()

    def until(self, now: float) -> None:
        """Go on to a time; what is due meanwhile is called."""
        while due := sorted((when, number) for number, (when, _) in self.timers.items() if when <= now):
            when, number = due[0]
            self.now = max(self.now, when)
            self.timers.pop(number)[1]()
        self.now = now


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def calls() -> list[float]:
    return []


@pytest.fixture
def timer(loop: Loop, calls: list[float]) -> Timer:
    return Timer(loop, lambda: calls.append(loop.now))  # type: ignore[arg-type]


def test_a_thousand_limits_that_move_on_take_one_timer_of_the_loop(
    timer: Timer, loop: Loop, calls: list[float]
) -> None:
    for request in range(1000):
        timer.set(110 + request / 1000)
        timer.stop()
    timer.set(112)
    assert next(loop.made) == 1
    loop.until(200)
    assert calls == [112]
    assert not loop.timers


def test_a_limit_that_moves_to_earlier_is_kept_to(timer: Timer, loop: Loop, calls: list[float]) -> None:
    timer.set(150)
    timer.set(120)
    loop.until(200)
    assert calls == [120]


def test_what_is_stopped_is_not_called_but_may_be_set_again(timer: Timer, loop: Loop, calls: list[float]) -> None:
    timer.start(10)
    assert timer.is_set
    timer.stop()
    assert not timer.is_set
    loop.until(150)
    timer.start(10)
    loop.until(200)
    assert calls == [160]


def test_what_it_calls_may_set_it_again(loop: Loop) -> None:
    times: list[float] = []

    def call() -> None:
        times.append(loop.now)
        if len(times) < 3:
            mine.start(5)

    mine = Timer(loop, call)  # type: ignore[arg-type]
    mine.start(5)
    loop.until(200)
    assert times == [105, 110, 115]


def test_what_is_closed_leaves_nothing_behind(timer: Timer, loop: Loop, calls: list[float]) -> None:
    timer.start(10)
    timer.close()
    assert not loop.timers
    timer.start(20)
    loop.until(200)
    assert calls == [120]


def test_a_real_loop_calls_it_at_its_time() -> None:
    async def run() -> float:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        timer = Timer(loop, done.set)
        started = loop.time()
        timer.start(0.05)
        timer.start(0.1)
        await done.wait()
        return loop.time() - started

    assert asyncio.run(run()) >= 0.098
