"""Each call of a model is counted, traced and limited on its own, however many there are at once."""

import asyncio
import gc
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from app import own
from app.access.estimate import estimate
from app.config import ModelEntry, Settings
from app.dependencies import LLM
from app.llm import circuit_breaker, retries
from app.llm.accounting import Accounting
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from app.main import create_app
from app.telemetry.tracing import Tracing
from tests.conftest import MakeSettings
from tests.serving import PROJECT
from tests.stub import PROMPT_TOKENS, Behaviour, Stub

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
EACH = 5
"""Calls of each model; every second one is streamed."""
TEXTS = {"short": "Yes.", "long": "A much longer answer.", "flaky": "At last, here I am."}
TOKENS_PER_MINUTE = 1_000_000

routes = APIRouter()


@routes.post("/own/many")
async def many(llm: LLM) -> list[str]:
    """Call four models at once, several times each."""

    async def ask(model: str, number: int) -> str:
        if number % 2:
            return "".join([chunk.content async for chunk in llm.stream(model=model, messages=MESSAGES)])
        return (await llm.complete(model=model, messages=MESSAGES)).content or ""

    return await asyncio.gather(
        *(ask(model, number) for number in range(EACH) for model in ("short", "long", "flaky", "unset"))
    )


@pytest.fixture
def stubs() -> Iterator[dict[str, Stub]]:
    """A provider for each model; that of `flaky` fails once."""
    with Stub() as short, Stub() as long, Stub() as flaky:
        found = {"short": short, "long": long, "flaky": flaky}
        for model, stub in found.items():
            stub.default = Behaviour(text=TEXTS[model])
        flaky.queue(Behaviour(status=500))
        yield found


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def app(
    settings: MakeSettings, stubs: dict[str, Stub], spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> FastAPI:
    """An app with four models: `flaky` needs a retry, and `unset` has no key, so that `short` answers instead."""
    monkeypatch.setattr(own, "routers", [routes], raising=False)
    monkeypatch.setattr(circuit_breaker, "FAILURES", 1000)
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0)
    models: dict[str, Any] = {
        name: {"upstream": f"openai/{name}", "api_base": f"{stub.url}/v1"} for name, stub in stubs.items()
    }
    models["unset"] = {"upstream": "openai/unset", "api_key_env": "NO_SUCH_KEY", "fallbacks": ["short"]}
    models["unset-alone"] = {"upstream": "openai/unset", "api_key_env": "NO_SUCH_KEY"}
    made = settings()
    callers = {"test": made.callers["test"].model_copy(update={"tokens_per_minute": TOKENS_PER_MINUTE})}
    app = create_app(settings(models=models, default_model="short", callers=callers, retries=1))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    upstreams = app.state.upstreams
    upstreams.accounting = Accounting(upstreams.limiter, upstreams.metrics, Tracing(provider.get_tracer("test")))
    return app


def tokens_of(model: str) -> int:
    return Behaviour(text=TEXTS[model]).completion_tokens


def test_twenty_calls_of_four_models_at_once_are_booked_each_on_its_own_model(
    app: FastAPI, spans: InMemorySpanExporter, headers: dict[str, str]
) -> None:
    with TestClient(app, headers=headers) as client, capture_logs() as lines:
        answers = client.post("/own/many").json()
        asked = {"model": "short", "messages": MESSAGES, "max_tokens": 1}
        remaining = client.post("/v1/chat/completions", json=asked).headers["x-ratelimit-remaining-tokens"]
    assert Counter(answers) == {TEXTS["short"]: 2 * EACH, TEXTS["long"]: EACH, TEXTS["flaky"]: EACH}

    answered_by = {"short": 2 * EACH, "long": EACH, "flaky": EACH}
    tokens_in = PROMPT_TOKENS * 4 * EACH
    tokens_out = sum(count * tokens_of(model) for model, count in answered_by.items())
    [line] = [line for line in lines if line.get("path") == "/own/many"]
    assert line["calls"] == 4 * EACH
    assert set(line["model"].split(", ")) == set(answered_by)
    assert (line["tokens_in"], line["tokens_out"]) == (tokens_in, tokens_out)
    assert Counter(line["tried"]) == {"short": 2 * EACH, "long": EACH, "flaky": EACH + 1, "unset": EACH}

    # The last call, made to see what is left, was admitted after the others had been settled.
    assert int(remaining) == TOKENS_PER_MINUTE - tokens_in - tokens_out - (estimate(asked) + 1)

    numbers = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(app.state.metrics.render().decode())
        for sample in family.samples
    }
    answered_by["short"] += 1
    for model, count in answered_by.items():
        assert numbers["llm_upstream_calls_total", model, "ok"] == count
        assert numbers["llm_tokens_total", "test", "in", model] == count * PROMPT_TOKENS
        assert numbers["llm_tokens_total", "test", "out", model] == count * tokens_of(model)
    assert numbers["llm_upstream_calls_total", "flaky", "provider_error"] == 1
    assert numbers["llm_retries_total", "flaky"] == 1
    assert numbers["llm_fallbacks_total", "unset"] == EACH
    assert numbers["http_request_duration_seconds_count", "several", "/own/many", "200"] == 1

    seen: Counter[tuple[str, str, tuple[str, ...], int]] = Counter()
    for span in spans.get_finished_spans()[:-1]:
        assert span.attributes
        tried: Any = span.attributes["app.models.tried"]
        used: Any = span.attributes["gen_ai.usage.output_tokens"]
        seen[span.name, str(span.attributes["gen_ai.request.model"]), tuple(tried), used] += 1
    assert seen == {
        ("chat short", "short", ("short",), tokens_of("short")): EACH,
        ("chat unset", "short", ("unset", "short"), tokens_of("short")): EACH,
        ("chat long", "long", ("long",), tokens_of("long")): EACH,
        ("chat flaky", "flaky", ("flaky",), tokens_of("flaky")): EACH - 1,
        ("chat flaky", "flaky", ("flaky", "flaky"), tokens_of("flaky")): 1,
    }


@routes.post("/own/group")
async def group(llm: LLM, model: str) -> list[str | None]:
    """Call two models at once; if one fails, the other is cancelled."""
    async with asyncio.TaskGroup() as calls:
        tasks = [calls.create_task(llm.complete(model=name, messages=MESSAGES)) for name in ("short", model)]
    return [task.result().content for task in tasks]


@pytest.mark.parametrize(("model", "status"), [("long", 200), ("unset-alone", 503), ("no-such-model", 500)])
def test_calls_in_a_task_group_fail_with_the_error_of_the_first(
    app: FastAPI, headers: dict[str, str], model: str, status: int
) -> None:
    with TestClient(app, headers=headers) as client:
        answer = client.post("/own/group", params={"model": model})
    assert answer.status_code == status
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["instance"] == f"urn:request:{answer.headers['x-request-id']}"


def test_two_thousand_calls_of_the_applications_own_client_leave_its_memory_flat() -> None:
    async def memory_of(llm: LLMClient, calls: int) -> int:
        for _ in range(calls):
            await llm.complete(model="demo", messages=MESSAGES)
        gc.collect()
        ours = [tracemalloc.Filter(inclusive=True, filename_pattern=f"{PROJECT}/app/*")]  # no other thread's
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)

    async def growth() -> int:
        settings = Settings(models={"demo": ModelEntry(upstream="demo/echo")}, default_model="demo")
        async with Upstreams(settings) as upstreams:
            llm = LLMClient(upstreams)
            before = await memory_of(llm, 100)
            return await memory_of(llm, 2_000) - before

    tracemalloc.start()
    try:
        assert asyncio.run(growth()) < 50_000  # 25 bytes a call: less than any object
    finally:
        tracemalloc.stop()
