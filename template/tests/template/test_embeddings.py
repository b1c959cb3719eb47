"""OpenAI's SDK, which always asks for base64, gets every provider's embeddings, whatever the provider can send."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.stub import Behaviour, Stub
from tests.template.running import Ask, row, running

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")

NUMBERS_ONLY = Behaviour(refuses=frozenset({"encoding_format"}))
"""A provider that does not know base64."""
VECTORS = [[1, 0.5, 0.25, 0.125], [2, 1, 0.5, 0.25]]
WAYS = {
    "openai": ("openai/text-embedding-3-small", "/v1", None),
    "openai via LiteLLM": ("openai/text-embedding-3-small", "/v1", "litellm"),
    "azure": ("azure/text-embedding-3-small", "/azure", "openai"),
    "mistral": ("mistral/mistral-embed", "/mistral/v1", None),
    "vllm": ("hosted_vllm/bge", "/vllm/v1", None),
    "ollama like OpenAI": ("ollama/nomic-embed-text", "/ollama", None),
    "of no known vendor": ("acme/bge", "/v1", None),
    "mistral via LiteLLM": ("mistral/mistral-embed", "/mistral/v1", "litellm"),
    "vllm via LiteLLM": ("hosted_vllm/bge", "/vllm/v1", "litellm"),
    "gemini": ("gemini/gemini-embedding-001", "/v1beta", "litellm"),
    "ollama": ("ollama/nomic-embed-text", "", "litellm"),
}
KNOW_BASE64 = ("openai", "openai via LiteLLM", "azure")


@pytest.fixture(scope="module")
def provider() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def ask(key: str, provider: Stub) -> Iterator[Ask]:
    models = {
        way: row(provider, upstream=upstream, api_base=provider.url + path)
        | ({"protocol": protocol or "openai"} if upstream.startswith("acme/") or protocol else {})
        for way, (upstream, path, protocol) in WAYS.items()
    }
    with running(key, models) as ask:
        yield ask


@pytest.fixture(scope="module")
def client(key: str, ask: Ask) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{ask.url}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_vectors_are_equal_on_every_way(client: openai.OpenAI, provider: Stub, way: str, encoding: Any) -> None:
    provider.default = Behaviour() if way in KNOW_BASE64 else NUMBERS_ONLY
    asked = {} if encoding is None else {"encoding_format": encoding}
    raw = client.embeddings.with_raw_response.create(model=way, input=["a", "b"], **asked)
    sent = [item["embedding"] for item in json.loads(raw.text)["data"]]
    assert all(isinstance(vector, list if encoding == "float" else str) for vector in sent)
    if encoding != "base64":  # then the SDK leaves the decoding to the application
        assert [item.embedding for item in raw.parse().data] == VECTORS


def test_an_answer_of_more_than_64_mb_passes(ask: Ask, provider: Stub) -> None:
    numbers = b",".join([b"0.1234567890123456789"] * 3072)
    row = b'{"object": "embedding", "index": 0, "embedding": [' + numbers + b"]}"
    body = b'{"object": "list", "model": "m", "data": [' + b",".join([row] * 1024) + b"]}"
    assert len(body) > 64 * 1024 * 1024
    provider.default = Behaviour(body=body)
    call = ask("vllm", path="/v1/embeddings", input=["a"] * 1024, encoding_format="base64")
    assert call.status == 200
    assert call.body.count(b'"embedding":') == 1024


@pytest.mark.parametrize("way", ["vllm", "ollama like OpenAI"])
@pytest.mark.parametrize(
    "vector", [[10**400], [1e39], ["x"], {}, None], ids=["huge", "too large", "text", "object", "null"]
)
def test_a_vector_that_is_none_is_the_providers_error(ask: Ask, provider: Stub, way: str, vector: Any) -> None:
    provider.default = Behaviour(body=json.dumps({"data": [{"index": 0, "embedding": vector}]}).encode())
    call = ask(way, path="/v1/embeddings", input="a", encoding_format="base64")
    assert (call.status, call.json["error"]["code"]) == (502, "provider_error")
