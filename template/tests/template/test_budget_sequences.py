"""Whatever calls do and however they end: what a budget counts is never less than what the provider charges.

Nor is it more than that and the reservations of calls that are in flight, or of which nobody knows what they took.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.access.callers import Caller
from app.config import Limits, ModelEntry, Settings
from app.errors import AppError, ProviderError
from app.llm import retries
from app.llm.adapter import Adapter
from app.llm.call import Call
from app.llm.client import LLMClient
from app.llm.sse import DONE
from app.llm.stream_state import StreamState
from app.llm.targets import Target
from app.llm.upstreams import Upstreams
from app.models import ChatRequest
from app.quotas import Price

PRICES = {"m": Price(input=3, output=11), "spare": Price(input=5.5, cached=1, output=20)}
BOUND = 30
MOST = {name: price.most(40, BOUND, 0) for name, price in PRICES.items()}
"""The most that an attempt is reserved, since these requests are estimated at less than 40 tokens."""
BUDGET = 6 * MOST["m"]

ENDS = ("answers", "tells nothing", "fails", "is cut off", "is refused")
Ledger = list[tuple[int, bool]]


class Provider(Adapter):
    """Charges what it likes, within the bounds of a request, and ends as it is told.

    Attributes:
        waiting: the attempts that wait for their end.
        ledger: what each attempt that has ended was charged with, and whether that was told.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[str, asyncio.Future[tuple[str, int]]]] = []
        self.ledger: Ledger = []

    async def complete(self, call: Call, target: Target) -> dict[str, Any]:
        usage = await self._end(target)
        choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
        return {"object": "chat.completion", "choices": [choice], "usage": usage}

    async def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, None]:
        state.see({"choices": [{"index": 0, "delta": {}}]})
        yield b"data: {}\n\n"
        usage = await self._end(target, begun=True)
        state.see({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage})
        yield DONE

    async def _end(self, target: Target, *, begun: bool = False) -> dict[str, int] | None:
        ending: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        entry = target.name, ending
        self.waiting.append(entry)
        try:
            how, tokens = await ending
        except asyncio.CancelledError:  # it goes on writing, and charges for it
            self.ledger.append((PRICES[target.name].cost(15, BOUND), False))
            raise
        finally:
            self.waiting.remove(entry)
        if how in ("fails", "is refused"):
            if begun:  # nobody knows that it charges nothing
                self.ledger.append((0, False))
            raise ProviderError("The provider fails.", retry=how == "fails")
        told = how == "answers"
        self.ledger.append((PRICES[target.name].cost(15, tokens), told))
        if how == "is cut off":
            raise ProviderError("The answer was cut off.", retry=True, truncated=True)
        return {"prompt_tokens": 15, "completion_tokens": tokens} if told else None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.booleans(), st.just(0)),
        st.tuples(st.sampled_from(ENDS), st.integers(0, 9), st.integers(1, BOUND)),
        st.tuples(st.just("leave"), st.integers(0, 9), st.just(0)),
    ),
    max_size=40,
)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(STEPS)
def test_a_budget_counts_what_is_charged_and_no_more_than_may_be(steps: list[tuple[str, Any, int]]) -> None:
    asyncio.run(play(steps))


async def play(steps: list[tuple[str, Any, int]]) -> None:
    models = {
        "m": ModelEntry(upstream="openai/m", api_base="http://127.0.0.1:9/v1", price=PRICES["m"], fallbacks=["spare"]),
        "spare": ModelEntry(upstream="openai/spare", api_base="http://127.0.0.1:9/v1", price=PRICES["spare"]),
    }
    upstreams = Upstreams(Settings(models=models, default_model="m", retries=1, usd_per_month=BUDGET / 1e6))
    provider = Provider()
    upstreams.adapters["direct"] = provider
    llm = LLMClient(upstreams, Caller("web", limits=Limits(usd_per_day=BUDGET / 1e6)))
    calls: list[asyncio.Task[None]] = []

    async def ask(*, stream: bool) -> None:
        request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": BOUND})
        with contextlib.suppress(AppError):
            if not stream:
                await llm.answer(request)
                return
            async with llm.open_stream(request) as opened:
                async for _ in opened.packets:
                    pass

    for what, which, tokens in steps:
        if what == "ask":
            calls.append(asyncio.create_task(ask(stream=which)))
        elif what == "leave":
            if running := [call for call in calls if not call.done()]:
                running[which % len(running)].cancel()
        elif provider.waiting:
            _, ending = provider.waiting[which % len(provider.waiting)]
            if not ending.done():
                ending.set_result((what, tokens))
        for _ in range(20):
            await asyncio.sleep(0)
        check(upstreams, provider, [call for call in calls if not call.done()])
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    check(upstreams, provider, [])


def check(upstreams: Upstreams, provider: Provider, running: list[Any]) -> None:
    counts = upstreams.limiter.storage.own._counts  # noqa: SLF001 - nobody else asks
    charged = sum(cost for cost, _ in provider.ledger)
    unknown = sum(not told for _, told in provider.ledger)
    for counted in (count for _, count in counts.values()):
        assert charged <= counted <= BUDGET
        # A call has at most four attempts: two at each of two models.
        assert counted <= charged + unknown * MOST["spare"] + len(running) * 2 * (MOST["m"] + MOST["spare"])
        if not running and not unknown:
            assert counted == charged
