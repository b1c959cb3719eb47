"""Whose fault an error was: the caller's, ours or the provider's. It decides what is told, tried again and counted."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.llm import retries
from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import Ask, row, running
from tests.wire import HELLO

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")
WAYS = pytest.mark.parametrize("way", ["direct", "litellm"])
KINDS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

WORDS = "The field 'temperature' of this request is too blue."


@pytest.fixture(scope="module")
def provider() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def server(key: str, provider: Stub) -> Iterator[Ask]:
    models = {
        "direct": row(provider),
        "litellm": row(provider, upstream="openai/gpt-4.1", protocol="litellm"),
        "anthropic": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": provider.url},
        "gemini": {"upstream": "gemini/gemini-2.5-flash", "api_base": f"{provider.url}/v1beta", "protocol": "litellm"},
        "cohere": {"upstream": "cohere_chat/command-a-03-2025", "api_base": f"{provider.url}/v2/chat"},
        "second": row(provider, upstream="openai/second"),
    }
    for way in ("direct", "litellm", "anthropic"):
        models[f"{way} first"] = models[way] | {"fallbacks": ["second"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retries, "FIRST_PAUSE", 0.01)
        with running(key, models, retries=2) as ask:
            yield ask


@pytest.fixture
def ask(server: Ask, provider: Stub) -> Iterator[Ask]:
    """Ask a model of a provider that has received nothing yet and answers well."""
    provider.requests.clear()
    provider.default = Behaviour()
    yield server
    provider.default = Behaviour()


def refusal(status: int, body: Any) -> Behaviour:
    return Behaviour(status=status, body=body.encode() if isinstance(body, str) else json.dumps(body).encode())


# The provider's words.

SHAPES: dict[str, Any] = {
    "OpenAI's": {"error": {"message": WORDS, "type": "invalid_request_error", "param": None, "code": None}},
    "a text for an error": {"error": WORDS},
    "a list of one error": [{"error": {"code": 400, "message": WORDS, "status": "INVALID_ARGUMENT"}}],
    "vLLM's": {"object": "error", "message": WORDS, "type": "BadRequestError", "param": None, "code": 400},
    "a detail": {"detail": WORDS},
    "a list of details": {"detail": [{"loc": ["body", "temperature"], "msg": WORDS, "type": "value_error"}]},
    "a message": {"message": WORDS},
    "an error within an error": {"error": {"error": {"message": WORDS}}},
    "xAI's": {"code": "Client specified an invalid argument", "error": WORDS},
    "text": WORDS,
    "numbers for codes": {"error": {"code": "400", "message": WORDS, "type": None}},
}


@WAYS
@KINDS
@pytest.mark.parametrize("shape", SHAPES)
def test_the_providers_words_are_found_in_every_shape(
    ask: Ask, provider: Stub, way: str, shape: str, stream: bool
) -> None:
    provider.default = refusal(400, SHAPES[shape])
    call = ask(way, stream=stream)
    assert (call.status, call.json["error"]["message"]) == (400, WORDS)
    assert call.json["error"]["type"] == "invalid_request_error"
    assert not call.json["error"]["code"].isdecimal()
    assert len(provider.requests) == 1


@WAYS
def test_a_page_of_html_is_not_shown(ask: Ask, provider: Stub, way: str) -> None:
    provider.default = refusal(400, "<html><body>nginx</body></html>")
    call = ask(way)
    assert (call.status, "nginx" in call.json["error"]["message"]) == (400, False)


# Ours, or a rate.

OURS = {
    "Anthropic's credit": (400, "Your credit balance is too low to access the Anthropic API.", None),
    "OpenAI's quota": (400, "You exceeded your current quota, please check your plan.", "insufficient_quota"),
    "OpenAI's billing": (400, "Billing hard limit has been reached.", "billing_hard_limit_reached"),
    "DashScope's arrears": (400, "Access denied, please make sure your account is in good standing.", "Arrearage"),
    "Google's key": (400, "API key not valid. Please pass a valid API key.", None),
    "xAI's key": (400, "Incorrect API key provided: xa***23. You can obtain an API key from the console.", None),
    "a payment": (413, "Your account is past due.", None),
    "DeepSeek's balance": (400, "Insufficient Balance", None),
}
RATES = {
    "Groq's": (413, "Request too large for model in organization on tokens per minute (TPM).", "rate_limit_exceeded"),
    "a sentence": (400, "Rate limit reached for requests.", None),
    "a throttle": (400, "Request was throttled.", "ThrottlingException"),
}
CALLERS = {
    "a quoted word": "Invalid value: 'credit'. Supported values are: 'auto' and 'none'.",
    "a field": "Unknown parameter: `api_key_missing`.",
    "a number of tokens": "max_tokens is too large: 32000. This model supports at most 16384 completion tokens.",
}


@WAYS
@pytest.mark.parametrize("name", OURS)
def test_what_speaks_of_our_account_or_key_is_ours(ask: Ask, provider: Stub, way: str, name: str) -> None:
    status, message, code = OURS[name]
    provider.default = Behaviour(status=status, message=message, code=code)
    call = ask(way)
    assert (call.status, call.json["error"]["code"]) == (502, "provider_misconfigured")
    assert message not in call.body.decode()
    assert len(provider.requests) == 1


@WAYS
@pytest.mark.parametrize("name", OURS)
def test_what_is_ours_falls_back(ask: Ask, provider: Stub, way: str, name: str) -> None:
    status, message, code = OURS[name]
    provider.queue(Behaviour(status=status, message=message, code=code))
    call = ask(f"{way} first")
    assert (call.status, call.headers["x-model"]) == (200, "second")


@WAYS
@pytest.mark.parametrize("name", RATES)
def test_what_speaks_of_a_rate_is_a_rate_limit(ask: Ask, provider: Stub, way: str, name: str) -> None:
    status, message, code = RATES[name]
    provider.default = Behaviour(status=status, message=message, code=code)
    call = ask(way)
    assert (call.status, call.json["error"]["code"]) == (429, "provider_rate_limited")
    assert message not in call.body.decode()


@WAYS
@pytest.mark.parametrize("name", CALLERS)
def test_what_only_quotes_such_words_is_the_callers(ask: Ask, provider: Stub, way: str, name: str) -> None:
    provider.default = Behaviour(status=400, message=CALLERS[name])
    call = ask(way)
    assert (call.status, call.json["error"]["message"]) == (400, CALLERS[name])


FILTERED = {
    "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
    "type": None,
    "param": "prompt",
    "code": "content_filter",
    "status": 400,
    "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
}


@pytest.mark.parametrize("way", ["direct", "direct first", "litellm"])
@KINDS
def test_a_prompt_that_azure_filters_is_the_callers(ask: Ask, provider: Stub, way: str, stream: bool) -> None:
    provider.default = refusal(400, {"error": FILTERED})
    call = ask(way, stream=stream)
    assert (call.status, call.json["error"]["code"]) == (400, "content_filter")
    assert (call.json["error"]["message"], call.json["error"]["param"]) == (FILTERED["message"], "prompt")
    assert len(provider.requests) == 1


OVERFLOWS = {
    "OpenAI": ("This model's maximum context length is 128000 tokens. However, you requested 200000.", None),
    "Anthropic": ("prompt is too long: 210000 tokens > 200000 maximum", None),
    "Google": ("The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", None),
    "Bedrock": ("Input is too long for requested model.", None),
    "llama.cpp": ("the request exceeds the available context size, try increasing it", None),
    "Mistral": (
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        None,
    ),
    "by code": ("Please reduce the length of the messages.", "context_length_exceeded"),
}


@pytest.mark.parametrize("way", ["direct", "litellm", "anthropic", "gemini", "cohere"])
@pytest.mark.parametrize("name", OVERFLOWS)
def test_a_conversation_that_is_too_long_keeps_its_words_and_has_its_code(
    ask: Ask, provider: Stub, way: str, name: str
) -> None:
    message, code = OVERFLOWS[name]
    provider.default = refusal(400, {"error": {"message": message, "type": "invalid_request_error", "code": code}})
    call = ask(way)
    assert (call.status, call.json["error"]["message"]) == (400, message)
    assert call.json["error"]["code"] == "context_length_exceeded"


# How long to wait.


@WAYS
@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after-ms": "12500"}, {}, "13"),
        ({"retry-after-ms": "12500", "retry-after": "99"}, {}, "13"),
        ({"retry-after": "12.2"}, {}, "13"),
        ({}, {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.074824224s"}]}, "35"),
    ],
)
def test_a_provider_says_how_long_to_wait(
    ask: Ask, provider: Stub, way: str, headers: dict[str, str], body: dict[str, Any], seconds: str
) -> None:
    error = {"error": {"code": 429, "message": "Quota exceeded, check your billing.", "status": "RESOURCE_EXHAUSTED"}}
    error["error"] |= body
    provider.default = Behaviour(status=429, body=json.dumps(error).encode(), headers=headers)
    call = ask(way)
    assert (call.status, call.headers["retry-after"]) == (429, seconds)
    assert len(provider.requests) == 1


# The circuit breaker.

CUT_OFF_ARGUMENTS = [
    *HELLO,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zü'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "sunny"},
]


@pytest.mark.parametrize("way", ["direct", "litellm", "anthropic"])
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_what_is_not_the_providers_fault_opens_no_circuit_breaker(
    ask: Ask, provider: Stub, way: str, status: int
) -> None:
    for _ in range(4):
        provider.queue(Behaviour(status=status))
        ask(f"{way} first").body  # noqa: B018 - reads to the end
    assert ask(f"{way} first").headers["x-model"] == f"{way} first"


@KINDS
@pytest.mark.parametrize("way", ["anthropic", "gemini"])
def test_what_litellm_can_not_translate_is_the_callers_at_once(
    ask: Ask, provider: Stub, way: str, stream: bool
) -> None:
    for _ in range(4):
        call = ask(way, messages=CUT_OFF_ARGUMENTS, stream=stream)
        assert (call.status, call.json["error"]["type"]) == (400, "invalid_request_error")
    assert provider.requests == []
    assert ask(way).json["content"] == TEXT


@pytest.mark.parametrize("way", ["direct", "litellm", "cohere"])
def test_other_providers_get_such_a_history_as_it_is(ask: Ask, way: str) -> None:
    assert ask(way, messages=CUT_OFF_ARGUMENTS).json["content"] == TEXT


# What is hardly HTTP.


@contextlib.contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """Serve these bytes to every request; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BROKEN = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "headers that are too long": OK + b"X-Long: " + b"a" * 200_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    "a body that is not compressed": OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "an encoding that nobody knows": OK + b"Content-Encoding: x-own\r\nContent-Length: 4\r\n\r\n\x00\x01\x02\x03",
    "a chunk without a length": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n",
}


@pytest.fixture(scope="module", params=BROKEN)
def broken(request: pytest.FixtureRequest, key: str) -> Iterator[Ask]:
    with saying(BROKEN[request.param]) as url:
        row = {"upstream": "openai/gpt-4o", "api_base": url}
        with running(key, {"direct": row, "litellm": row | {"protocol": "litellm"}}) as ask:
            yield ask


@WAYS
@KINDS
def test_an_answer_that_is_hardly_http_is_told_as_what_it_is(broken: Ask, way: str, stream: bool) -> None:
    call = broken(way, stream=stream)
    assert (call.status, call.json["error"]["code"]) == (502, "provider_error")
    assert call.json["detail"] == f"The provider of model {way!r} sent an answer that can't be read."


@WAYS
@KINDS
def test_a_refusal_in_an_encoding_that_nobody_asked_for_is_told_without_its_words(
    key: str, way: str, stream: bool
) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Encoding: x-own\r\n"
    with saying(head + b"Content-Length: 5\r\nConnection: close\r\n\r\n\x0b\x02garb") as url:
        row = {"upstream": "openai/gpt-4o", "api_base": url}
        with running(key, {"direct": row, "litellm": row | {"protocol": "litellm"}}) as ask:
            call = ask(way, stream=stream)
            told = (
                (400, "refused the request (400).") if way == "direct" else (502, "sent an answer that can't be read.")
            )
            assert (call.status, call.json["detail"].partition(f"{way!r} ")[2]) == told
