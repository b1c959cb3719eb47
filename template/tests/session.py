"""A session of calls, played from outside, and the numbers that `/metrics` must show after it."""

import hashlib
import json
import time
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.stub import PROMPT_TOKENS, TEXT, Behaviour, Stub
from tests.wire import CHAT, HELLO, Call

Numbers = dict[tuple[str, ...], float]
"""Values by the sample's name and its labels' values, in the order of the labels' names."""

KEYS = {"web": "sk-app-web", "limited": "sk-app-limited", "thrifty": "sk-app-thrifty"}
TOKENS = len(TEXT.split()) + 1
BUDGET, COST = 0.0101, (PROMPT_TOKENS + 10 * TOKENS) / 1e6
"""US dollars: enough for one call that may have a thousand tokens, and what one costs."""
PROBES = {"/health", "/ready", "/metrics"}
DAY = 86_400
"""Seconds."""


def settings(stub: Stub) -> dict[str, Any]:
    """Return the settings that the session needs: models at a provider, and three callers."""
    at_stub = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}
    callers: dict[str, Any] = {
        name: {"key_sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in KEYS.items()
    }
    callers["web"]["metrics"] = True
    callers["limited"]["requests_per_minute"] = 2
    callers["thrifty"]["usd_per_day"] = BUDGET
    return {
        "default_model": "main",
        "models": {
            "main": at_stub | {"requests_per_minute": 1000},
            "spare": at_stub,
            "fragile": at_stub | {"fallbacks": ["spare"]},
            "dear": at_stub | {"price": {"input": 1, "output": 10}},
            "demo": {"upstream": "demo/echo"},
        },
        "callers": callers,
        "retries": 1,
    }


def play(url: str, stub: Stub) -> None:
    """Call a server that has `settings` and has served nobody else."""

    def ask(model: str, *behaviours: Behaviour, key: str = KEYS["web"], **fields: Any) -> None:
        stub.queue(*behaviours)
        with Call(url, key, model=model, **fields) as call:
            assert call.body

    for _ in range(3):
        ask("main")
    for _ in range(2):
        ask("main", stream=True)
    with Call(url, KEYS["web"], "/v1/embeddings", model="main", input="Hello") as call:
        assert call.status == 200
    ask("demo")

    # The provider fails: once, so that the retry answers; twice, so that the fallback does; for good; in mid-stream.
    ask("spare", Behaviour(status=500))
    ask("fragile", Behaviour(status=500), Behaviour(status=503), stream=True)
    ask("spare", Behaviour(status=400))
    ask("spare", Behaviour(status=429, headers={"retry-after": "100"}))
    ask("spare", Behaviour(status=500), Behaviour(status=500))
    ask("main", Behaviour(cut_after=3, pace=0.01), stream=True)

    # The client leaves: in mid-stream, and before the answer.
    stub.queue(Behaviour(stall_after=3))
    with Call(url, KEYS["web"], model="main", stream=True) as call:
        for _ in range(3):
            next(call.events)
    assert stub.wait_until(lambda: stub.in_flight == 0)
    stub.queue(Behaviour(delay_headers=60))
    with Call(url, KEYS["web"], model="main"):
        assert stub.wait_until(lambda: stub.in_flight == 1)
    assert stub.wait_until(lambda: stub.in_flight == 0)

    # Who may call, how often, and what there is.
    for _ in range(3):
        ask("spare", key=KEYS["limited"])
    for _ in range(2):
        ask("dear", key=KEYS["thrifty"], max_tokens=1000)
    ask("main", key="wrong")
    ask("no-such-model")
    for path in ("/v1/models/main", "/nowhere/42"):
        httpx2.get(url + path, headers={"Authorization": f"Bearer {KEYS['web']}"}, timeout=60)


def implied() -> Numbers:
    """Return every number that the session implies."""
    cut_off = {"messages": HELLO, "model": "main", "stream": True}
    estimate = len(json.dumps(cut_off, separators=(",", ":"))) // 4  # four bytes to a token, where nobody has counted
    requests, tokens, calls = "http_request_duration_seconds_count", "llm_tokens_total", "llm_upstream_calls_total"
    return {
        (requests, "main", CHAT, "200"): 6,
        (requests, "main", CHAT, "499"): 2,
        (requests, "spare", CHAT, "200"): 4,
        (requests, "spare", CHAT, "400"): 1,
        (requests, "spare", CHAT, "429"): 1,
        (requests, "spare", CHAT, "502"): 1,
        (requests, "demo", CHAT, "200"): 1,
        (requests, "none", CHAT, "401"): 1,
        (requests, "none", CHAT, "404"): 1,
        (requests, "dear", CHAT, "200"): 1,
        (requests, "none", CHAT, "429"): 2,
        (requests, "main", "/v1/embeddings", "200"): 1,
        (requests, "none", "/v1/models/{model:path}", "200"): 1,
        (requests, "none", "none", "404"): 1,
        ("http_requests_in_flight",): 1,  # the scrape itself
        ("http_stream_errors_total", "provider_error", CHAT): 1,
        ("client_disconnects_total", CHAT): 2,
        ("llm_time_to_first_chunk_seconds_count", "main"): 4,
        ("llm_time_to_first_chunk_seconds_count", "spare"): 1,
        ("llm_time_per_chunk_seconds_count", "main"): 4,
        ("llm_time_per_chunk_seconds_count", "spare"): 1,
        (tokens, "web", "in", "main"): 6 * PROMPT_TOKENS + 2 * estimate,
        (tokens, "web", "out", "main"): 5 * TOKENS + 2 * 3,
        (tokens, "web", "in", "spare"): 2 * PROMPT_TOKENS,
        (tokens, "web", "out", "spare"): 2 * TOKENS,
        (tokens, "limited", "in", "spare"): 2 * PROMPT_TOKENS,
        (tokens, "limited", "out", "spare"): 2 * TOKENS,
        (tokens, "thrifty", "in", "dear"): PROMPT_TOKENS,
        (tokens, "thrifty", "out", "dear"): TOKENS,
        ("llm_cost_usd_total", "thrifty", "dear"): COST,
        ("llm_budget_limit_usd", "thrifty", "caller", "day"): BUDGET,
        ("llm_budget_used_usd", "thrifty", "caller", "day"): COST,
        ("llm_budget_refusals_total", "thrifty", "caller", "day"): 1,
        ("llm_budget_ends_timestamp_seconds", "thrifty", "caller", "day"): (time.time() // DAY + 1) * DAY,
        (tokens, "web", "in", "demo"): len("Hello".split()),
        (tokens, "web", "out", "demo"): len("You said: Hello".split()),
        **{("llm_calls_in_flight", model): 0 for model in ("main", "spare", "fragile", "dear", "demo")},
        (calls, "main", "ok"): 6,
        (calls, "main", "provider_error"): 1,
        (calls, "main", "cancelled"): 2,
        (calls, "spare", "ok"): 4,
        (calls, "spare", "provider_error"): 3,
        (calls, "spare", "invalid_request"): 1,
        (calls, "spare", "provider_rate_limited"): 1,
        (calls, "fragile", "provider_error"): 2,
        (calls, "dear", "ok"): 1,
        (calls, "demo", "ok"): 1,
        ("llm_retries_total", "spare"): 2,
        ("llm_retries_total", "fragile"): 1,
        ("llm_fallbacks_total", "fragile"): 1,
        ("llm_streams_truncated_total", "main"): 1,
        ("llm_model_cooling", "spare"): 0,
        ("llm_model_cooling", "fragile"): 0,
        ("limiter_decisions_total", "admitted", "model"): 9,
        ("limiter_decisions_total", "admitted", "caller"): 3,
        ("limiter_decisions_total", "refused", "caller"): 2,
        ("limit_storage_up",): 1,
    }


def page(url: str, key: str = KEYS["web"]) -> str:
    """Return what `/metrics` shows to who has a key."""
    return httpx2.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=60).raise_for_status().text


def shown(url: str, key: str = KEYS["web"]) -> Numbers:
    """Return what `/metrics` shows, but for times, and for probes and scrapes, of which there may be any number."""
    text = page(url, key)
    numbers = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_sum", "_created")) and sample.labels.get("route") not in PROBES:
                numbers[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value
    return numbers


def shown_once_settled(url: str, expected: Numbers, seconds: float = 30) -> Numbers:
    """Return what `/metrics` shows as soon as that is what is expected, or after so many seconds.

    Metrics of which nothing is expected are left out: a project may have some of its own.
    """
    names = {name for name, *_ in expected}
    deadline = time.monotonic() + seconds
    while True:
        numbers = {key: value for key, value in shown(url).items() if key[0] in names}
        if numbers == expected or time.monotonic() > deadline:
            return numbers
        time.sleep(0.05)
