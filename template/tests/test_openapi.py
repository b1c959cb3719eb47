"""The OpenAPI page tells of keys, of every error and of streams."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.config import Settings
from app.main import create_app
from tests.wire import CHAT


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    app = create_app(Settings(api_docs=True))
    with TestClient(app) as client:
        yield client.get("/openapi.json").json()


def test_a_key_is_needed_but_where_a_route_is_open_to_all(page: Any) -> None:
    assert page["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert page["security"] == [{"key": []}]
    kept = {path: route.get("security") for path, methods in page["paths"].items() for route in methods.values()}
    assert {path for path, security in kept.items() if security == []} == {"/health", "/ready"}
    assert kept[CHAT] is None


def test_bounds_are_told(page: Any) -> None:
    fields = page["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    for name, low, high in [("temperature", 0, 2), ("max_tokens", 1, None), ("n", 1, 128), ("top_p", 0, 1)]:
        kind = fields[name]["anyOf"][0]
        assert (kind["minimum"], kind.get("maximum")) == (low, high)


@pytest.mark.parametrize(("given", "status"), [({"max_tokens": 5.0}, 200), ({"max_tokens": 5.5}, 422)], ids=str)
def test_a_whole_number_may_be_written_with_a_point(given: dict[str, Any], status: int) -> None:
    """For JSON Schema, 5.0 is an integer."""
    with TestClient(create_app(Settings())) as client:
        asked = {"model": "demo", "messages": [{"role": "user", "content": "a b c d e f g"}]} | given
        answer = client.post(CHAT, json=asked)
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["choices"][0]["finish_reason"] == "length"
