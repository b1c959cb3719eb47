"""A server whose callers have limits, and what its answers tell of them."""

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from app.access.callers import hash_key
from app.config import Settings
from tests.conftest import Serve
from tests.stub import PROMPT_TOKENS, TEXT, Stub
from tests.wire import CHAT, HELLO, Call

EMBEDDINGS = "/v1/embeddings"
USED = PROMPT_TOKENS + len(TEXT.split()) + 1
"""Tokens that the stub's answer takes."""

Ask = Callable[..., httpx2.Response]


class Served:
    """A server whose callers `a` and `b`, with keys of the same names, have limits; or whose model has."""

    def __init__(
        self, client: httpx2.Client, serve: Serve, stub: Stub, *, model: Any = None, settings: Any = None, **caller: Any
    ) -> None:
        table: Any = {
            "gpt-4o": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"} | (model or {}),
            "demo": {"upstream": "demo/echo"},
        }
        callers: Any = {name: {"key_sha256": hash_key(name), "metrics": True} | caller for name in "ab"}
        self.url = serve(Settings(models=table, callers=callers, retries=0, **(settings or {})))
        self._client = client

    def ask(self, key: str = "a", path: str = CHAT, **fields: Any) -> httpx2.Response:
        body = fields if "input" in fields else {"messages": HELLO} | fields
        return self._client.post(self.url + path, json=body, headers={"Authorization": f"Bearer {key}"})

    def stream(self, key: str = "a", **fields: Any) -> Call:
        return Call(self.url, key, stream=True, **fields)

    def metric(self, name: str) -> float:
        page = self._client.get(f"{self.url}/metrics", headers={"Authorization": "Bearer a"}).text
        return float(next(line for line in page.splitlines() if line.startswith(name)).rpartition(" ")[2])


def client() -> Iterator[httpx2.Client]:
    """A fixture: what asks every server of a module."""
    with httpx2.Client(timeout=60) as client:
        yield client


def served(client: httpx2.Client, serve: Serve, stub: Stub) -> Callable[..., Served]:
    """A fixture: makes a `Served`."""
    return lambda **given: Served(client, serve, stub, **given)


def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fixture: time that a test moves by hand. No minute ends in between, however busy the machine is."""
    clock = SimpleNamespace(now=1000.7, time=time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("app.access.process_storage.time", clock)
    return clock


def remaining(response: httpx2.Response, what: str = "tokens") -> int:
    return int(response.headers[f"x-ratelimit-remaining-{what}"])


def is_refused(response: httpx2.Response) -> bool:
    """Return whether a limit was reached; hold the refusal against what all of them have in common."""
    if response.status_code == 200:
        return False
    body = response.json()
    assert (response.status_code, body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert body["error"]["type"] == "rate_limit_error"
    return True


def until(ask: Ask, condition: Callable[[httpx2.Response], bool]) -> httpx2.Response:
    """Ask until an answer fits; return the last one."""
    for _ in range(500):
        if condition(answer := ask()):
            break
        time.sleep(0.02)
    return answer
