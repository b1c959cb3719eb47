"""OpenAI's own client reads every error of the table that a caller can provoke; providers' are in another test."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from app.config import Settings
from app.main import create_app
from tests.serving import serve
from tests.stub import Behaviour, Stub

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
HELLO: dict[str, Any] = {"model": "direct", "messages": MESSAGES}


@pytest.fixture(scope="module")
def strict(key: str) -> Iterator[openai.OpenAI]:
    """A client of a server that is easily offended."""
    with Stub(Behaviour(pace=5)) as stub:
        at_stub = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}
        callers: dict[str, dict[str, Any]] = {
            key: {"requests_per_minute": 1000},
            "sk-app-narrow": {"models": ["demo"]},
            "sk-app-rare": {"requests_per_minute": 1},
        }
        hashes = {name: {"key_sha256": hashlib.sha256(name.encode()).hexdigest()} for name in callers}
        settings = Settings.model_validate(
            {
                "models": {
                    "direct": at_stub,
                    "keyless": {"upstream": "openai/gpt-4o"},
                    "demo": {"upstream": "demo/echo"},
                },
                "default_model": "demo",
                "callers": {name: callers[name] | hashes[name] for name in callers},
                "max_body_bytes": 2000,
                "max_in_flight": 1,
            }
        )
        app = create_app(settings)

        @app.get("/v1/broken")
        def broken() -> None:
            raise RuntimeError("the secret of this failure")

        with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            yield client


def _as(key: str) -> Callable[[openai.OpenAI], object]:
    return lambda client: client.with_options(api_key=key).chat.completions.create(**HELLO)


def _chat(**fields: Any) -> Callable[[openai.OpenAI], object]:
    return lambda client: client.chat.completions.create(**(HELLO | fields))


def _twice(client: openai.OpenAI) -> None:
    for _ in range(2):
        client.with_options(api_key="sk-app-rare").chat.completions.create(model="demo", messages=MESSAGES)


def _while_another_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.create(**HELLO, stream=True) as stream:
        next(stream)
        client.models.list()


ERRORS: dict[str, tuple[Callable[[openai.OpenAI], object], int, str, str]] = {
    "no key": (
        lambda client: client.chat.completions.create(**HELLO, extra_headers={"Authorization": openai.omit}),
        401,
        "invalid_api_key",
        "invalid_request_error",
    ),
    "a wrong key": (_as("sk-app-nobody"), 401, "invalid_api_key", "invalid_request_error"),
    "a model that isn't theirs": (_as("sk-app-narrow"), 403, "model_not_allowed", "invalid_request_error"),
    "no such model": (_chat(model="gpt-99"), 404, "model_not_found", "invalid_request_error"),
    "no such path": (
        lambda client: client.get("/nothing", cast_to=object),
        404,
        "not_found",
        "invalid_request_error",
    ),
    "completions, which came before chat": (
        lambda client: client.completions.create(model="direct", prompt="Hello"),
        404,
        "unknown_endpoint",
        "invalid_request_error",
    ),
    "a wrong method": (
        lambda client: client.get("/chat/completions", cast_to=object),
        405,
        "method_not_allowed",
        "invalid_request_error",
    ),
    "a body too large": (_chat(user="x" * 3000), 413, "request_too_large", "invalid_request_error"),
    "headers too large": (
        _chat(extra_headers={"X-Large": "x" * 100_000}),
        431,
        "request_too_large",
        "invalid_request_error",
    ),
    "no JSON": (
        lambda client: client.post("/chat/completions", cast_to=object, content=b'{"model": NaN}'),
        400,
        "invalid_json",
        "invalid_request_error",
    ),
    "out of bounds": (_chat(temperature=9), 422, "invalid_request", "invalid_request_error"),
    "no messages": (_chat(messages=[]), 422, "invalid_request", "invalid_request_error"),
    "a caller's limit": (_twice, 429, "rate_limit_exceeded", "rate_limit_error"),
    "too much in flight": (_while_another_streams, 503, "overloaded", "server_error"),
    "no provider key": (_chat(model="keyless"), 503, "provider_not_configured", "server_error"),
    "a mistake of ours": (
        lambda client: client.get("/broken", cast_to=object),
        500,
        "internal_error",
        "server_error",
    ),
}


@pytest.mark.parametrize(("provoke", "status", "code", "kind"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_read_by_openais_client(
    strict: openai.OpenAI, provoke: Callable[[openai.OpenAI], object], status: int, code: str, kind: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        provoke(strict)
    check_error(caught.value, status, code, kind)


def check_error(error: openai.APIStatusError, status: int, code: str, kind: str) -> None:
    assert (error.status_code, error.code, error.type) == (status, code, kind)
    assert isinstance(error.body, dict)
    assert len(error.body["message"]) > 10
    assert "secret" not in error.response.text
    assert error.request_id
    problem = error.response.json()
    assert error.response.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["detail"]) == (status, error.body["message"])
    assert problem["instance"] == f"urn:request:{error.request_id}"
