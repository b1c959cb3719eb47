"""What calls cost, to the micro-dollar: twelve models by ten kinds of usage, worked out by hand."""

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.config import ModelEntry, Settings
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from app.models import ChatRequest, EmbeddingRequest
from app.quotas import Price
from tests.stub import Behaviour, Stub
from tests.template.running import request_line, row, running
from tests.wire import HELLO, Call

PRICES: dict[str, dict[str, float]] = {
    "gpt-4o": {"input": 2.5, "cached": 1.25, "output": 10},
    "gpt-4o-mini": {"input": 0.15, "cached": 0.075, "output": 0.6},
    "gpt-5": {"input": 1.25, "cached": 0.125, "output": 10},
    "gpt-5-nano": {"input": 0.05, "cached": 0.005, "output": 0.4},
    "claude-sonnet": {"input": 3, "cached": 0.3, "cache_write": 3.75, "output": 15},
    "claude-opus": {"input": 15, "cached": 1.5, "cache_write": 18.75, "output": 75},
    "gemini-flash": {"input": 0.3, "cached": 0.03, "output": 2.5, "image": 0.000258},
    "reasoner": {"input": 0.55, "cached": 0.14, "output": 2.19, "reasoning": 3.5},
    "plain": {"input": 0.2, "output": 0.9},
    "free": {"input": 0, "output": 0},
    "fraction": {"input": 0.333333, "output": 0.000001},
    "small": {"input": 0.02},
}

PLAIN = {"prompt_tokens": 1000, "completion_tokens": 200}
USAGES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "cached": PLAIN | {"prompt_tokens_details": {"cached_tokens": 900}},
    "cache written": PLAIN | {"cache_creation_input_tokens": 600, "prompt_tokens_details": {"cached_tokens": 300}},
    "cache written, as its details say": PLAIN | {"prompt_tokens_details": {"cache_creation_tokens": 1000}},
    "reasoning": PLAIN | {"completion_tokens_details": {"reasoning_tokens": 150}},
    "reasoning in the total alone": PLAIN
    | {"total_tokens": 1300, "completion_tokens_details": {"reasoning_tokens": 100}},
    "three choices": {"prompt_tokens": 1000, "completion_tokens": 600},
    "two images": {"prompt_tokens": 3000, "completion_tokens": 10},
    "one token each": {"prompt_tokens": 1, "completion_tokens": 1},
    "more cached than there is": PLAIN | {"prompt_tokens_details": {"cached_tokens": 5000}},
}

# Micro-dollars, one column for each of USAGES.
COSTS = {
    "gpt-4o": (4500, 3375, 4125, 4500, 4500, 5500, 8500, 7600, 13, 3250),
    "gpt-4o-mini": (270, 203, 248, 270, 270, 330, 510, 456, 1, 195),
    "gpt-5": (3250, 2238, 2913, 3250, 3250, 4250, 7250, 3850, 12, 2125),
    "gpt-5-nano": (130, 90, 117, 130, 130, 170, 290, 154, 1, 85),
    "claude-sonnet": (6000, 3570, 5640, 6750, 6000, 7500, 12000, 9150, 18, 3300),
    "claude-opus": (30000, 17850, 28200, 33750, 30000, 37500, 60000, 45750, 90, 16500),
    "gemini-flash": (800, 557, 719, 800, 800, 1050, 1800, 1441, 3, 530),
    "reasoner": (988, 619, 865, 988, 1185, 1338, 1864, 1672, 3, 578),
    "plain": (380, 380, 380, 380, 380, 470, 740, 609, 2, 380),
    "free": (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "fraction": (334, 334, 334, 334, 334, 334, 334, 1000, 1, 334),
}
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def body_of(usage: dict[str, Any]) -> Behaviour:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    return Behaviour(
        body=json.dumps({"id": "a", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    )


def costs_at(stub: Stub, model: str, requests: list[tuple[Behaviour, Any]]) -> list[int | None]:
    entry = ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1", price=Price(**PRICES[model]))

    async def ask() -> list[int | None]:
        costs = []
        async with Upstreams(Settings(models={"m": entry}, default_model="m")) as upstreams:
            llm = LLMClient(upstreams)
            for behaviour, request in requests:
                stub.queue(behaviour)
                answer = await (llm.answer if isinstance(request, ChatRequest) else llm.embeddings)(request)
                costs.append(answer.call.cost)
        return costs

    return asyncio.run(ask())


@pytest.mark.parametrize("model", COSTS)
def test_a_call_costs_what_was_worked_out_by_hand(stub: Stub, model: str) -> None:
    seen = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, PICTURE, PICTURE]}
    requests = [
        (body_of(usage), ChatRequest.model_validate({"messages": [seen] if kind == "two images" else HELLO}))
        for kind, usage in USAGES.items()
    ]
    assert costs_at(stub, model, requests) == list(COSTS[model])


@pytest.mark.parametrize(("tokens", "cost"), [(50, 1), (51, 2), (1_000_000, 20_000)])
def test_embeddings_need_a_price_of_the_input_alone(stub: Stub, tokens: int, cost: int) -> None:
    rows = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = Behaviour(body=json.dumps({"object": "list", "data": rows, "model": "m", "usage": usage}).encode())
    assert costs_at(stub, "small", [(answer, EmbeddingRequest(input="Hello"))]) == [cost]


def test_a_price_of_embeddings_alone_is_no_price_of_a_chat(stub: Stub) -> None:
    assert costs_at(stub, "small", [(body_of(PLAIN), ChatRequest.model_validate({"messages": HELLO}))]) == [None]


@pytest.mark.parametrize(
    ("price", "most"),
    [
        ({"input": 2, "output": 10}, 2_000 + 5_000),
        ({"input": 2, "cached": 0.5, "cache_write": 4, "output": 10, "reasoning": 12}, 4_000 + 6_000),
        ({"input": 2, "output": 10, "image": 0.001}, 2_000 + 5_000 + 3_000),
        ({"input": 0.0001, "output": 0}, 1),
    ],
)
def test_the_most_that_a_call_can_cost_takes_each_token_at_its_dearest(price: dict[str, float], most: int) -> None:
    assert Price(**price).most(1000, 500, 3) == most


# The dialects that are passed through count in their own words.

ANTHROPICS = {
    "input_tokens": 100,
    "cache_read_input_tokens": 300,
    "cache_creation_input_tokens": 600,
    "output_tokens": 200,
}
OPENAIS = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 600},
    "output_tokens": 200,
    "output_tokens_details": {"reasoning_tokens": 150},
    "total_tokens": 1200,
}
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
RESPONSE = {"id": "r", "object": "response", "status": "completed", "model": "m", "output": []}
STREAM_TYPE = {"content-type": "text/event-stream"}


def events(*told: dict[str, Any]) -> Behaviour:
    text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in told)
    return Behaviour(body=text.encode(), headers=STREAM_TYPE)


PASSED_THROUGH = {
    ("/v1/messages", False): Behaviour(
        body=json.dumps(MESSAGE | {"content": [{"type": "text", "text": "Hi"}], "usage": ANTHROPICS}).encode()
    ),
    ("/v1/messages", True): events(
        {"type": "message_start", "message": MESSAGE | {"content": [], "usage": ANTHROPICS | {"output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 200}},
        {"type": "message_stop"},
    ),
    ("/v1/responses", False): Behaviour(body=json.dumps(RESPONSE | {"usage": OPENAIS}).encode()),
    ("/v1/responses", True): events(
        {"type": "response.created", "sequence_number": 0, "response": RESPONSE | {"status": "in_progress"}},
        {"type": "response.completed", "sequence_number": 1, "response": RESPONSE | {"usage": OPENAIS}},
    ),
}


@pytest.mark.parametrize(("path", "stream"), PASSED_THROUGH)
def test_what_is_passed_through_costs_what_its_dialect_tells(stub: Stub, key: str, path: str, stream: bool) -> None:
    price = {"input": 3, "cached": 0.3, "cache_write": 3.75, "output": 15, "reasoning": 20}
    stub.queue(PASSED_THROUGH[path, stream])
    asked = {"input": "Hello"} if path == "/v1/responses" else {"messages": HELLO, "max_tokens": 1000}
    models = {"m": row(stub, price=price, speaks=["responses", "messages"])}
    with running(key, models) as ask, capture_logs() as lines:
        with Call(ask.url, key, path, model="m", stream=stream, **asked) as call:
            assert call.body
        thoughts = 150 * 5 if path == "/v1/responses" else 0
        assert request_line(lines)["cost_usd"] == (300 + 90 + 2250 + 3000 + thoughts) / 1e6
