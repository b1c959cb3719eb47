"""Budgets: money is reserved before a call and settled after it, of callers, models and the whole service."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from app.access.callers import Caller, hash_key
from app.access.limits import warn_of_budgets
from app.access.windows import DAY, calendar
from app.config import JwtSettings, ModelEntry, Settings
from app.errors import BudgetExceeded
from app.http.cors import EXPOSED_HEADERS
from app.llm.accounting import Accounting
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from app.models import ChatRequest
from app.quotas import Price
from app.telemetry.tracing import Tracing
from tests.stub import Behaviour, Stub
from tests.template.running import Ask, request_line, row, running
from tests.wire import HELLO

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()
PRICE = {"input": 1, "output": 10}
COST = 7 + 8 * 10
"""Micro-dollars of one answer of the stub: 7 tokens of the request, 8 of the answer."""
ASKED = 1000
MOST = 20 + ASKED * 10
"""Micro-dollars that are reserved for it: a token for four bytes of the request, and the bound of the answer."""
METRIC = 'llm_cost_usd_total{caller="test",model="m"} '
CUT = Behaviour(cut_after=2)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The wall clock, which a test moves by hand."""
    clock = SimpleNamespace(now=NOON)
    clock.time = lambda: clock.now
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("app.access.windows.time", clock)
    monkeypatch.setattr("app.access.process_storage.time", clock)
    return clock


Served = Callable[..., Ask]


@pytest.fixture
def served(stub: Stub, key: str) -> Iterator[Served]:
    """Serve a model with a price, and others; take the caller's budgets, the model's row, and settings."""
    with contextlib.ExitStack() as stack:

        def serve(model: Any = None, models: Any = None, settings: Any = None, **caller: Any) -> Ask:
            table = {"m": row(stub, price=PRICE) | (model or {}), "demo": {"upstream": "demo/echo"}} | (models or {})
            callers = {"test": {"key_sha256": hash_key(key)} | caller}
            return stack.enter_context(running(key, table, callers=callers, **(settings or {})))

        yield serve


def spent(ask: Ask, scope: str = "caller/test", date: str = "2026-11-28") -> int:
    """Return what is spent or reserved of a budget, in micro-dollars."""
    counts = ask.state.upstreams.limiter.storage.own._counts  # noqa: SLF001 - nobody else asks
    return int(counts.get(f"usd/{date}/{scope}", (0, 0))[1])


def settled(ask: Ask, total: int, scope: str = "caller/test") -> int:
    """Wait until so much is counted; return what is."""
    deadline = time.monotonic() + 20
    while spent(ask, scope) != total and time.monotonic() < deadline:
        time.sleep(0.005)
    return spent(ask, scope)


def usd(micro: int) -> float:
    return micro / 1e6


SCOPES: dict[str, tuple[dict[str, Any], str]] = {
    "caller": ({"usd_per_day": usd(MOST + 10)}, "caller/test"),
    "model": ({"model": {"usd_per_day": usd(MOST + 10)}}, "model/m"),
    "service": ({"settings": {"usd_per_day": usd(MOST + 10)}}, "service/all"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", SCOPES)
def test_what_a_call_costs_is_charged_to_the_budget(served: Served, kind: str, stream: bool) -> None:
    given, scope = SCOPES[kind]
    ask = served(**given)
    assert ask("m", messages=HELLO, max_tokens=ASKED, stream=stream).body
    assert settled(ask, COST, scope) == COST


@pytest.mark.parametrize("kind", SCOPES)
def test_who_asks_for_more_than_is_left_is_told_what_helps(served: Served, kind: str) -> None:
    given, scope = SCOPES[kind]
    ask = served(**given)
    assert ask("m", messages=HELLO, max_tokens=ASKED).status == 200
    refused = ask("m", messages=HELLO, max_tokens=ASKED)
    error = refused.json["error"]
    assert (refused.status, error["code"], error["type"]) == (429, "budget_exceeded", "rate_limit_error")
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["retry-after"] == str(12 * 3600)
    assert f"this {kind}'s budget" in error["message"]
    assert "for the day, which ends at 2026-11-29 00:00 UTC: send a lower max_tokens." in error["message"]
    assert (f"of ${usd(MOST + 10)}" in error["message"]) == (kind == "caller"), (
        "what others may spend is no caller's business"
    )
    assert spent(ask, scope) == COST, "a refused call leaves nothing behind"
    assert ask("m", messages=HELLO, max_tokens=10).status == 200


def test_a_budget_with_nothing_left_is_told_with_the_time_when_it_ends(served: Served, clock: SimpleNamespace) -> None:
    ask = served(usd_per_month=usd(COST), usd_per_day=1)
    assert ask("m", messages=HELLO, max_tokens=3).status == 200
    refused = ask("m", messages=HELLO, max_tokens=3)
    assert refused.status == 429
    end = "2026-12-01 00:00 UTC"
    assert (
        refused.json["detail"]
        == f"Nothing is left of this caller's budget of $0.000087 for the month, which ends at {end}."
    )
    clock.now = datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC).timestamp()
    assert ask("m", messages=HELLO, max_tokens=3).status == 200


def test_a_request_that_no_day_has_room_for_is_not_told_to_wait(served: Served) -> None:
    refused = served(usd_per_day=usd(100))("m", messages=HELLO, max_tokens=ASKED)
    assert refused.status == 429
    assert f"This request could cost ${usd(MOST)}, more than the $0.0001 that is left" in refused.json["detail"]
    assert refused.headers["retry-after"] is None
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("unit", "day", "date", "end"),
    [
        ("day", "2026-12-31", "2026-12-31", "2027-01-01"),
        ("month", "2026-12-31", "2026-12", "2027-01-01"),
        ("month", "2028-02-29", "2028-02", "2028-03-01"),
        ("month", "2027-01-31", "2027-01", "2027-02-01"),
        ("month", "2027-04-01", "2027-04", "2027-05-01"),
    ],
)
def test_days_and_months_are_those_of_the_calendar(unit: Any, day: str, date: str, end: str) -> None:
    began, ended = (int(datetime.fromisoformat(f"{each}T00:00Z").timestamp()) for each in (day, end))
    assert calendar(unit, began // DAY) == (date, ended)


def test_a_call_is_charged_to_the_day_in_which_it_began(served: Served, stub: Stub, clock: SimpleNamespace) -> None:
    ask = served(usd_per_day=1)
    stub.queue(Behaviour(stall_after=2))
    call = ask("m", messages=HELLO, max_tokens=ASKED, stream=True)
    next(call.events)
    clock.now = NOON + 13 * 3600
    call.leave()
    assert stub.requests[0].closed.wait(20)
    assert ask("m", messages=HELLO, max_tokens=ASKED).status == 200
    assert spent(ask, date="2026-11-29") == COST


UNTOLD = b'{"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}]}'


@pytest.mark.parametrize(
    ("behaviour", "cost"),
    [
        (Behaviour(), COST),
        (Behaviour(usage=False), MOST),
        (Behaviour(body=UNTOLD), MOST),
        (Behaviour(status=500), 0),
        (Behaviour(status=400), 0),
        (Behaviour(status=429), 0),
        (Behaviour(status=0), MOST),
        (Behaviour(status=504), MOST),
        (CUT, MOST),
    ],
    ids=["whole", "no usage", "no usage at all", "failed", "refused", "busy", "closed", "gave up", "cut off"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_knows_stays_reserved(
    served: Served, stub: Stub, behaviour: Behaviour, cost: int, stream: bool
) -> None:
    ask = served(usd_per_day=1)
    stub.queue(behaviour)
    cost += 4 if stream and cost == MOST else 0  # the field takes four tokens
    assert ask("m", messages=HELLO, max_tokens=ASKED, stream=stream).body
    assert settled(ask, cost) == cost


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_pays_what_was_reserved(served: Served, stub: Stub, stream: bool) -> None:
    ask = served(usd_per_day=1)
    stub.queue(Behaviour(delay_headers=60))
    call = ask("m", messages=HELLO, max_tokens=ASKED, stream=stream)
    assert stub.wait_until(lambda: bool(stub.requests))
    call.leave()
    assert stub.requests[0].closed.wait(20)
    assert MOST <= spent(ask) <= MOST + 4


@pytest.mark.parametrize(("bound", "status"), [(None, 429), (8000, 429), (7900, 200)])
def test_an_answer_that_nothing_bounds_reserves_the_bound_of_its_model(
    served: Served, bound: int | None, status: int
) -> None:
    asked = {"messages": HELLO} | ({} if bound is None else {"max_tokens": bound})
    assert served(usd_per_day=usd(10 * 8000), model={"max_tokens_limit": 8000})("m", **asked).status == status


BOUNDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
AZURE = {"upstream": "azure/m", "api_key_env": "KEY"}
LIMITED = {"max_tokens_limit": 8000}


@pytest.mark.parametrize(
    ("model", "given", "sent"),
    [
        ({}, {}, {"max_tokens": 8000}),
        ({}, {"max_completion_tokens": 9}, {"max_completion_tokens": 9}),
        ({"defaults": {"max_tokens": 7}}, {}, {"max_tokens": 7}),
        ({"defaults": {"max_completion_tokens": 7}}, {"max_tokens": 9}, {"max_tokens": 9}),
        ({"protocol": "litellm"}, {}, {"max_tokens": 8000}),
        (AZURE, {}, {"max_completion_tokens": 8000}),
        (AZURE, {"max_tokens": 9}, {"max_tokens": 9}),
        ({"upstream": "own/m", "price": None}, {}, {}),
        ({"price": None}, {}, {}),
        ({"max_tokens_limit": None}, {}, {}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_under_a_budget_is_no_longer_than_what_is_reserved(
    stub: Stub,
    monkeypatch: pytest.MonkeyPatch,
    served: Served,
    model: dict[str, Any],
    given: dict[str, Any],
    sent: dict[str, Any],
    stream: bool,
) -> None:
    monkeypatch.setenv("KEY", "key")
    monkeypatch.setattr("app.own.models", {"m": _asks_nobody}, raising=False)
    assert served(model=LIMITED | model)("m", messages=HELLO, stream=stream, **given).status == 200
    body = stub.requests[0].body if stub.requests else {}
    assert {name: body[name] for name in BOUNDS if name in body} == sent


async def _asks_nobody(_request: ChatRequest, _llm: LLMClient) -> AsyncGenerator[str, None]:
    yield "Hello"


def test_the_bound_of_all_models_bounds_answers_too_if_it_is_set(stub: Stub, served: Served) -> None:
    assert served(settings=LIMITED)("m", messages=HELLO).status == 200
    assert stub.requests[0].body["max_tokens"] == 8000


def test_a_response_that_is_passed_through_is_bounded_by_its_own_name(stub: Stub, served: Served) -> None:
    ask = served(model=LIMITED | {"speaks": ["responses"]})
    headers = {"Authorization": f"Bearer {ask.key}"}
    httpx2.post(f"{ask.url}/v1/responses", json={"model": "m", "input": "Hello"}, headers=headers, timeout=60)
    assert stub.requests[0].body["max_output_tokens"] == 8000


@pytest.mark.parametrize(
    ("api_base", "name"),
    [
        (None, "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://ours.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://api.openai.com.example/v1", "max_tokens"),
        ("http://vllm:8000/v1", "max_tokens"),
    ],
)
def test_openais_own_models_get_the_bound_that_all_of_them_know(api_base: str | None, name: str) -> None:
    price = Price(input=1, output=10)
    entry = ModelEntry(upstream="openai/gpt-5", api_base=api_base, price=price, max_tokens_limit=8000)
    target = Upstreams(Settings(models={"m": entry}, default_model="m"), {"OPENAI_API_KEY": "key"}).targets["m"]
    fields = target.fields({"messages": HELLO})
    assert {bound: fields[bound] for bound in BOUNDS if bound in fields} == {name: 8000}


# Prices that are missing, and what has none.


@pytest.mark.parametrize("price", [None, {"input": 1}])
@pytest.mark.parametrize("kind", SCOPES)
def test_a_model_without_a_price_is_refused_where_a_budget_applies(served: Served, kind: str, price: Any) -> None:
    given, _ = SCOPES[kind]
    given = given | {"model": given.get("model", {}) | {"price": price}}
    refused = served(**given)("m", messages=HELLO)
    assert (refused.status, refused.json["error"]["code"]) == (503, "model_not_priced")
    assert refused.headers["x-should-retry"] == "false"
    assert "python -m app prices" in refused.json["detail"]


def test_a_model_without_a_price_serves_who_has_no_budget(served: Served) -> None:
    answer = served(model={"price": None})("m", messages=HELLO)
    assert (answer.status, answer.headers["x-cost-usd"]) == (200, None)


def test_the_demo_model_is_free(served: Served) -> None:
    ask = served(usd_per_day=usd(1), settings={"usd_per_month": usd(1)})
    assert ask("demo", messages=HELLO).status == 200


# Retries and fallbacks.


def test_a_fallback_is_charged_at_its_own_price(served: Served, stub: Stub) -> None:
    ask = served(
        usd_per_day=1, model={"fallbacks": ["other"]}, models={"other": row(stub, price={"input": 2, "output": 20})}
    )
    stub.queue(Behaviour(status=500))
    answer = ask("m", messages=HELLO, max_tokens=ASKED)
    assert answer.headers["x-model"] == "other"
    assert answer.headers["x-cost-usd"] == f"{usd(2 * COST):.6f}"
    assert settled(ask, 2 * COST) == 2 * COST


@pytest.mark.parametrize("price", [None, {"input": 1, "output": 1000}])
def test_a_fallback_that_no_budget_has_room_for_is_not_tried(served: Served, stub: Stub, price: Any) -> None:
    ask = served(usd_per_day=usd(5 * MOST), model={"fallbacks": ["other"]}, models={"other": row(stub, price=price)})
    stub.queue(Behaviour(status=500))
    assert ask("m", messages=HELLO, max_tokens=ASKED).status == 502
    assert len(stub.requests) == 1
    assert settled(ask, 0) == 0


def test_what_a_broken_attempt_may_have_cost_stays_reserved_beside_its_retry(served: Served, stub: Stub) -> None:
    ask = served(usd_per_day=1, settings={"retries": 2})
    stub.queue(Behaviour(status=500), CUT)
    assert ask("m", messages=HELLO, max_tokens=ASKED).status == 200
    assert settled(ask, MOST + COST) == MOST + COST


def test_a_broken_attempt_is_not_tried_again_if_no_budget_has_room_for_both(served: Served, stub: Stub) -> None:
    ask = served(usd_per_day=usd(MOST + 100), settings={"retries": 2})
    stub.queue(CUT)
    assert ask("m", messages=HELLO, max_tokens=ASKED).status == 502
    assert len(stub.requests) == 1
    assert settled(ask, MOST) == MOST


# Own models.


async def twice(request: ChatRequest, llm: LLMClient) -> AsyncGenerator[str, None]:
    for _ in range(2):
        yield (await llm.complete(model="m", messages=request.messages, max_tokens=ASKED)).content or ""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.main.own", SimpleNamespace(models={"twice": twice}))


OWN = {"twice": {"upstream": "own/twice", "usd_per_day": 1}, "nested": {"upstream": "own/twice"}}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("stream", [False, True])
def test_an_own_model_costs_what_its_calls_cost_once(served: Served, stream: bool) -> None:
    ask = served(usd_per_day=1, models=OWN, model={"usd_per_day": 1}, settings={"usd_per_day": 1})
    answer = ask("twice", messages=HELLO, stream=stream)
    assert answer.body
    for scope in ("caller/test", "model/twice", "model/m", "service/all"):
        assert settled(ask, 2 * COST, scope) == 2 * COST, scope
    if not stream:
        assert answer.headers["x-cost-usd"] == f"{usd(2 * COST):.6f}"
    assert METRIC + str(usd(2 * COST)) in ask.metrics


@pytest.mark.usefixtures("own")
def test_an_own_models_calls_end_where_a_budget_does(served: Served, stub: Stub) -> None:
    ask = served(usd_per_day=usd(MOST + 50), models=OWN)
    refused = ask("twice", messages=HELLO)
    assert (refused.status, refused.json["error"]["code"]) == (429, "budget_exceeded")
    assert len(stub.requests) == 1
    assert settled(ask, COST) == COST


# Where the cost is seen.


def test_a_whole_answer_tells_its_cost_and_browsers_may_read_it(served: Served) -> None:
    ask = served()
    answer = ask("m", messages=HELLO)
    assert answer.headers["x-cost-usd"] == "0.000087"
    assert "X-Cost-USD" in EXPOSED_HEADERS
    assert METRIC + str(usd(COST)) in ask.metrics


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_line_tells_the_cost(served: Served, stream: bool) -> None:
    ask = served()
    with capture_logs() as lines:
        assert ask("m", messages=HELLO, stream=stream).body
        assert request_line(lines)["cost_usd"] == usd(COST)


def test_the_state_of_budgets_is_in_the_metrics(served: Served) -> None:
    ask = served(usd_per_day=usd(MOST + 10))
    for status in (200, 429):
        assert ask("m", messages=HELLO, max_tokens=ASKED).status == status
    labels = '{name="test",scope="caller",window="day"}'
    assert f"llm_budget_limit_usd{labels} {usd(MOST + 10)}" in ask.metrics
    assert f"llm_budget_used_usd{labels} {usd(COST)}" in ask.metrics
    assert f"llm_budget_ends_timestamp_seconds{labels} {NOON + DAY / 2}" in [
        line.replace("1.7959104e+09", "1795910400.0") for line in ask.metrics
    ]
    assert f"llm_budget_refusals_total{labels} 1.0" in ask.metrics


def test_a_span_tells_the_cost(served: Served) -> None:
    ask = served()
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    upstreams = ask.state.upstreams
    upstreams.accounting = Accounting(upstreams.limiter, upstreams.metrics, Tracing(provider.get_tracer("test")))
    assert ask("m", messages=HELLO).body
    [span] = exporter.get_finished_spans()
    assert span.attributes
    assert span.attributes["app.cost_usd"] == usd(COST)


def test_each_subject_of_tokens_has_a_budget_of_its_own_and_none_is_in_the_metrics(stub: Stub) -> None:
    issued: Any = {"issuer": "i", "audience": ["a"], "jwks_url": "https://example.com/keys"}
    limits = JwtSettings(**issued, usd_per_day=usd(COST + 5))
    models = {"m": ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1", price=Price(input=1, output=10))}

    async def calls() -> bytes:
        async with Upstreams(Settings(models=models, default_model="m")) as upstreams:
            for name in ("jwt:alice", "jwt:bob"):
                llm = LLMClient(upstreams, Caller(name, limits=limits, label="jwt"))
                await llm.complete(messages=HELLO, max_tokens=5)
                with pytest.raises(BudgetExceeded, match="left of this caller's budget"):
                    await llm.complete(messages=HELLO, max_tokens=5)
            return upstreams.metrics.render()

    shown = asyncio.run(calls())
    assert b'llm_cost_usd_total{caller="jwt",model="m"} 0.000174' in shown
    assert b"alice" not in shown


def test_a_start_warns_of_budgets_that_can_not_hold() -> None:
    models = {"demo": ModelEntry(upstream="demo/echo"), "unknown": ModelEntry(upstream="nobody/x")}
    with capture_logs() as lines:
        warn_of_budgets(Settings(models=models, default_model="demo"))
        assert lines == []
        warn_of_budgets(Settings(models=models, default_model="demo", usd_per_day=1))
    assert "in each process's memory" in lines[0]["event"]
    assert (lines[1]["event"][:28], lines[1]["models"]) == ("models without a price are r", ["unknown"])


# While the storage fails.


@pytest.fixture
def down() -> str:
    """The address of a storage that nobody runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"async+valkey://127.0.0.1:{listener.getsockname()[1]}"


def test_while_the_storage_fails_nothing_is_spent_under_a_budget(served: Served, stub: Stub, down: str) -> None:
    ask = served(usd_per_day=1, settings={"limit_storage": down})
    with capture_logs() as lines:
        refused = ask("m", messages=HELLO)
        assert (refused.status, refused.json["error"]["code"]) == (503, "budget_unavailable")
        assert refused.headers["retry-after"] == "2"
    assert stub.requests == []
    assert [line["budgets"] for line in lines if line["log_level"] == "error"] == ["calls with a budget are refused"]
    assert ask("demo", messages=HELLO).status == 200


def test_open_budgets_are_counted_by_each_process_while_the_storage_fails(served: Served, down: str) -> None:
    ask = served(usd_per_day=usd(MOST + 10), settings={"limit_storage": down, "budget_failure_mode": "open"})
    with capture_logs() as lines:
        assert [ask("m", messages=HELLO, max_tokens=ASKED).status for _ in range(2)] == [200, 429]
    assert [line["budgets"] for line in lines if line["log_level"] == "error"] == ["each process counts for itself"]
