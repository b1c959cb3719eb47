"""A 422 names the field that does not fit, in the caller's terms, whatever stands there."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.config import Settings
from app.main import create_app
from app.models import ChatRequest, EmbeddingRequest, Message

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
HELLO = {"role": "user", "content": "Hello"}
VALUES: list[Any] = [True, 1, 1.5, -1, 10**30, "x", [], [1], [None], [[1]], [["a"]], ["a", 1], {}, {"a": 1}, [{}]]
PARTS: list[Any] = [*VALUES, [{"type": 1}], [{"text": "Hello"}], [{"type": "text"}, 7], [HELLO, 7]]

PLACES: list[tuple[str, str, dict[str, Any]]] = [
    *((CHAT, name, {"messages": [HELLO], name: value}) for name in ChatRequest.model_fields for value in PARTS),
    *(
        (CHAT, f"messages.0.{name}", {"messages": [HELLO | {name: value}]})
        for name in Message.model_fields
        for value in PARTS
    ),
    *((EMBEDDINGS, name, {"input": "Hello", name: value}) for name in EmbeddingRequest.model_fields for value in PARTS),
]
NAMES = {*ChatRequest.model_fields, *Message.model_fields, *EmbeddingRequest.model_fields, "type", "include_usage"}
OF_PYTHON = re.compile(r"instance of|dictionary|constrained|Message\b|Part\b|StreamOptions|JsonValue|pydantic|\bstr\b")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Settings())) as client:
        yield client


def test_every_misfit_is_told_by_its_place_and_without_types_of_python(client: TestClient) -> None:
    refused = 0
    for path, place, body in PLACES:
        answer = client.post(path, json={"model": "demo"} | body)
        assert answer.status_code in (200, 400, 401, 404, 422), (place, body)
        if answer.status_code != 422:
            continue
        refused += 1
        error = answer.json()["error"]
        assert f"{error['param']}.".startswith(f"{place}.") or place.startswith(error["param"]), (place, error)
        assert all(part in NAMES or part.isdecimal() for part in error["param"].split(".")), error
        assert not OF_PYTHON.search(error["message"]), error
    assert refused > 150
