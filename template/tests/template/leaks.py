"""Every path of failure, with a canary in every secret and in everything that a request says."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import httpx2

from app.access.callers import hash_key
from tests.serving import free_port
from tests.stub import Behaviour, Stub
from tests.template.faults import Fault
from tests.wire import CHAT, HELLO, Call

EMBEDDINGS = "/v1/embeddings"
CANARY = "cAnArY"
"""Is in every secret, and in nothing else."""
PROMPT = "pRoMpT"
"""Is in everything that a request says."""
KEY = f"sk-app-{CANARY}-caller"
WAYS = ("direct", "litellm", "anthropic")
KEYS = {
    "OPENAI_API_KEY": f"sk-{CANARY}-openai",
    "OWN_SERVER_CREDS": f"{CANARY}0123456789own",
    "ANTHROPIC_API_KEY": f"{CANARY}-anthropic",
    "GEMINI_API_KEY": f"AIza{CANARY}-gemini",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}/aws",
}


def environment(stub: Stub) -> dict[str, str]:
    """Return variables that hold secrets, and that lead the vendors' own names to a stub."""
    return KEYS | {
        "OPENAI_BASE_URL": f"{stub.url}/v1",
        "ANTHROPIC_API_BASE": stub.url,
        "HTTP_PROXY": f"http://user:{CANARY}@127.0.0.1:{free_port()}",
        "NO_PROXY": "127.0.0.1",
    }


def settings(stub: Stub) -> dict[str, Any]:
    """Return settings that have secrets too, with models on every way to a stub, and little patience."""
    own = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1", "api_key_env": "OWN_SERVER_CREDS"}
    away = {"upstream": "openai/m", "api_base": "http://provider.example/v1", "api_key_env": "OPENAI_API_KEY"}
    return {
        "models": {
            "direct": {"upstream": "openai/gpt-4o"},
            "litellm": own | {"protocol": "litellm"},
            "spoken": own | {"speaks": ["responses", "messages"]},
            "anthropic": {"upstream": "anthropic/claude-sonnet-4-5"},
            "demo": {"upstream": "demo/echo"},
            "proxied": away,
            "proxied via LiteLLM": away | {"protocol": "litellm"},
            "limited": own | {"requests_per_minute": 1},
            "without its key": {"upstream": "groq/x"},
        },
        "default_model": "direct",
        "callers": {
            "test": {"key_sha256": hash_key(KEY), "tokens_per_minute": 10_000_000},
            "other": {"key_sha256": hash_key(f"{KEY}2"), "models": ["demo"]},
        },
        "auth": {"jwt": {"issuer": "i", "audience": "a", "jwks_url": f"http://127.0.0.1:{free_port()}/keys"}},
        "limit_storage": f"async+valkey://:{CANARY}@127.0.0.1:{free_port()}/0",
        "log_level": "debug",
        "api_docs": True,
        "playground": True,
        "retries": 0,
        "max_body_bytes": 100_000,
        "timeouts": {"first_token": 0.2, "idle": 0.2, "total": 0.4},
    }


def walk(url: str, stub: Stub, faults: Iterable[Fault]) -> Iterator[str]:
    """Walk every path of failure; yield headers and bodies of all that comes back.

    Args:
        url: a server with the settings and the environment from above.
        stub: its provider, whose errors quote every key that there is.
        faults: the provider's.
    """
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        for model in WAYS:
            for fault in faults:
                for kind in sorted(fault.answers):
                    stub.queue(_quoting(fault.behaviour))
                    yield _seen(client.post(CHAT, json=_request(model, stream=kind == "stream")))
            stub.queue(Behaviour(text="word " * 50, pace=0.02))
            with Call(url, KEY, **_request(model, stream=True)) as call:
                yield str(call.headers)  # and the client leaves
        for path, request in _DIALECTS.items():
            for model in ("direct", "spoken"):
                for behaviour in _FAILING:
                    for stream in (False, True):
                        stub.queue(_quoting(behaviour))
                        yield _failure(client.post(path, json=request | {"model": model, "stream": stream}))
            for unfit in [*({"input": [item], "messages": [item]} for item in _UNFIT_ITEMS), *_UNFIT_FIELDS]:
                yield _failure(client.post(path, json=request | unfit))
        stub.default = _quoting(Behaviour(status=400))
        for model in settings(stub)["models"].keys() - {"demo"}:  # which repeats what it is told
            for body in (_request(model, stream=True), _request(model, stream=False) | {"n": 2}):
                yield _seen(client.post(CHAT, json=body))
            yield _seen(client.post(EMBEDDINGS, json={"model": model, "input": [PROMPT], "user": PROMPT}))
        for fields in _UNFIT:
            yield _seen(client.post(CHAT, json={"messages": HELLO} | fields))
        for content in (PROMPT, '{"messages": "' + PROMPT, PROMPT * 50_000):
            yield _seen(client.post(CHAT, content=content, headers={"Content-Type": "application/json"}))
        for key in (f"{KEY}2", f"{KEY}3", f"a.{CANARY}.c", f"eyJhbGciOiJFUzI1NiJ9.{CANARY}.c", CANARY):
            headers = {"Authorization": f"Bearer {key}"}
            yield _seen(client.post(CHAT, json=_request("direct", stream=False), headers=headers))
            yield _seen(client.get("/metrics", headers=headers | {"Host": "elsewhere"}))
        yield _seen(client.get("/v1/models/none", headers={"X-Request-ID": f"{PROMPT} {CANARY}"}))
        yield _seen(client.post(f"/v1/models?{PROMPT}={CANARY}", json=PROMPT))
        yield _seen(client.get("/v1/models", headers={"X-Large": PROMPT * 20_000, "Cookie": CANARY}))
        yield _seen(client.post("/fails", json=PROMPT))
        for path in ("/metrics", "/openapi.json", "/ready", "/health", "/v1/models", "/playground/config.json"):
            yield _seen(client.get(path))


def _seen(response: httpx2.Response) -> str:
    return f"{response.headers} {response.text}"


def _failure(response: httpx2.Response) -> str:
    """Return all of an error; of an answer that has begun, what it says of one: Responses repeat their request."""
    if response.is_error:
        return _seen(response)
    errors = re.findall(r'"error": ?{[^}]*}', response.text)
    return f"{response.headers} {errors}"


def _quoting(behaviour: Behaviour) -> Behaviour:
    return replace(behaviour, message=f"Wrong key: {', '.join([*KEYS.values(), KEY])}")


def _request(model: str, *, stream: bool) -> dict[str, Any]:
    """Return a request with the prompt in everything that a provider is told."""
    tool = {"type": "function", "function": {"name": PROMPT, "description": PROMPT, "parameters": {"title": PROMPT}}}
    call = {"id": PROMPT, "type": "function", "function": {"name": PROMPT, "arguments": json.dumps({"a": PROMPT})}}
    return {
        "model": model,
        "stream": stream,
        "messages": [
            {"role": "system", "content": PROMPT},
            {"role": "user", "content": [{"type": "text", "text": PROMPT}], "name": PROMPT},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": PROMPT, "content": PROMPT},
        ],
        "tools": [tool],
        "stop": [PROMPT],
        "user": PROMPT,
    }


_DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/responses": {
        "instructions": PROMPT,
        "input": [
            {"role": "user", "content": PROMPT},
            {"type": "function_call", "call_id": PROMPT, "name": PROMPT, "arguments": json.dumps({"a": PROMPT})},
            {"type": "function_call_output", "call_id": PROMPT, "output": PROMPT},
        ],
        "tools": [{"type": "function", "name": PROMPT, "parameters": {"title": PROMPT}}],
        "metadata": {PROMPT: PROMPT},
    },
    "/v1/messages": {
        "system": PROMPT,
        "messages": [
            {"role": "user", "content": PROMPT},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": PROMPT, "name": PROMPT, "input": {"a": PROMPT}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": PROMPT, "content": PROMPT}]},
        ],
        "tools": [{"name": PROMPT, "input_schema": {"title": PROMPT, "type": "object"}}],
        "max_tokens": 10,
        "metadata": {"user_id": PROMPT},
    },
}
"""Requests with the prompt in everything, in the other dialects."""
_FAILING = (Behaviour(status=400), Behaviour(status=500), Behaviour(error_at=3), Behaviour(cut_after=3))
_UNFIT_ITEMS: list[dict[str, Any]] = [
    {"role": PROMPT, "content": PROMPT},
    {"role": "user", "content": [{"type": "input_image", "image_url": f"ftp://{PROMPT}"}]},
    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": f"ftp://{PROMPT}"}}]},
    {"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": f"ftp://{PROMPT}"}}]},
    {"type": "function_call", "call_id": PROMPT, "name": PROMPT, "arguments": PROMPT},
]
_UNFIT_FIELDS: list[dict[str, Any]] = [
    {"temperature": PROMPT},
    {"model": PROMPT},
    {"tools": [PROMPT]},
    {"stop": PROMPT},
]
_UNFIT: list[dict[str, Any]] = [
    {"temperature": PROMPT},
    {"messages": [{"role": PROMPT, "content": PROMPT}]},
    {"messages": [{"role": "user", "content": [{"type": PROMPT * 20}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"ftp://{PROMPT}"}}]}]},
    {"model": PROMPT},
    {"tools": [PROMPT]},
    {PROMPT: PROMPT, "max_tokens": 0},
]
