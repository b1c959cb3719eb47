"""All that a client may send reaches the provider or is refused by name: nothing is dropped, nothing else obeyed."""

import inspect
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from openai.resources import Embeddings
from openai.resources.chat.completions import Completions

from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import Ask, request_line, row, running
from tests.wire import HELLO, chunks_of

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")

EMBEDDINGS = "/v1/embeddings"
OF_THE_CLIENT = {"self", "model", "extra_headers", "extra_query", "extra_body", "timeout"}
"""What `create` takes for itself, and does not send under its name."""
PARAMETERS = [name for name in inspect.signature(Completions.create).parameters if name not in OF_THE_CLIENT]
EMBEDDING_PARAMETERS = [name for name in inspect.signature(Embeddings.create).parameters if name not in OF_THE_CLIENT]

IMAGE = "data:image/png;base64,iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}}
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
LATER = {"of": ["a later release", 1, 2.5, None, True]}
"""For parameters that are newer than this file."""

VALUES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "input": ["Hello", "World"],
    "audio": {"voice": "alloy", "format": "wav"},
    "dimensions": 8,
    "encoding_format": "base64",
    "frequency_penalty": 0.5,
    "function_call": {"name": "weather"},
    "functions": [TOOL["function"]],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 100,
    "max_tokens": 100,
    "metadata": {"team": "a"},
    "modalities": ["text", "audio"],
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "Hello"},
    "presence_penalty": -0.5,
    "prompt_cache_key": "key",
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}},
    "safety_identifier": "user-1",
    "seed": 7,
    "service_tier": "flex",
    "stop": ["END", "STOP"],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "temperature": 0.5,
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "tools": [TOOL],
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "user-1",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}
BESIDE: dict[str, dict[str, Any]] = {
    "audio": {"modalities": ["text", "audio"]},
    "function_call": {"functions": VALUES["functions"]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [TOOL]},
    "top_logprobs": {"logprobs": True},
}
"""Without which a parameter makes no sense."""

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "every role": [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "Weather?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
        {"role": "tool", "content": [{"type": "text", "text": "sunny"}], "tool_call_id": "call_1"},
        {"role": "assistant", "content": "Sunny.", "refusal": None},
        {"role": "user", "content": ""},
    ],
    "parts": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this? 世界 \u2028 \\u0000"},
                {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
            ],
        }
    ],
    "what assistants said": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "audio": {"id": "audio_1"}},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "sunny"},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}]},
        {"role": "tool", "content": "done", "tool_call_id": "c"},
    ],
    "fields of providers": [
        {"role": "system", "content": [{"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi.", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": "Hello.",
            "reasoning_content": "They greet me.",
            "thinking_blocks": [{"type": "thinking", "thinking": "They greet me.", "signature": "c2ln"}],
        },
        {"role": "user", "content": "Weather?", "own": LATER},
    ],
}


@pytest.fixture(scope="module")
def provider() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def server(key: str, provider: Stub) -> Iterator[Ask]:
    models = {
        "direct": row(provider),
        "litellm": row(provider, upstream="openai/gpt-4.1", protocol="litellm"),
        "embeddings": row(provider, upstream="openai/text-embedding-3-small", protocol="litellm"),
        "anthropic": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": provider.url},
        "o-series": row(provider, upstream="openai/o3", protocol="litellm"),
        "sampling": row(provider, defaults={"temperature": 0.7, "max_tokens": 1024}),
        "sampling-litellm": row(
            provider,
            upstream="openai/gpt-5.1",
            protocol="litellm",
            defaults={"presence_penalty": 0.7, "max_completion_tokens": 1024},
        ),
    }
    with running(key, models, retries=2) as ask:
        yield ask


@pytest.fixture
def ask(server: Ask, provider: Stub) -> Ask:
    """Ask a model of a provider that has received nothing yet and answers well."""
    provider.requests.clear()
    provider.default = Behaviour()
    return server


def received(provider: Stub) -> dict[str, Any]:
    """Return the body of the one request that the provider has received."""
    [request] = provider.requests
    body: dict[str, Any] = request.body
    return body


def exact(value: Any) -> str:
    """Return a value's JSON, which tells 1 from 1.0 and from true."""
    return json.dumps(value, sort_keys=True)


# Parameters.


@pytest.mark.parametrize("name", [*PARAMETERS, "of_a_later_release"])
def test_a_parameter_goes_to_a_direct_provider_as_it_is(ask: Ask, provider: Stub, name: str) -> None:
    value = VALUES.get(name, LATER)
    call = ask("direct", **BESIDE.get(name, {}) | {name: value})
    assert call.status == 200, call.body
    assert exact(received(provider)[name]) == exact(value)


@pytest.mark.parametrize("name", [*EMBEDDING_PARAMETERS, "of_a_later_release"])
def test_a_parameter_of_embeddings_goes_to_a_direct_provider_as_it_is(ask: Ask, provider: Stub, name: str) -> None:
    value = VALUES.get(name, LATER)
    call = ask("direct", path=EMBEDDINGS, **{"input": "Hello", name: value})
    assert call.status == 200, call.body
    assert exact(received(provider)[name]) == exact(value)


def test_all_parameters_at_once_and_nothing_else_go_to_a_direct_provider(ask: Ask, provider: Stub) -> None:
    fields = {name: VALUES.get(name, LATER) for name in PARAMETERS}
    assert ask("direct", **fields).status == 200
    assert exact(received(provider)) == exact(fields | {"model": "gpt-4o"})


@pytest.mark.parametrize("name", ["temperature", "stream_options", "max_tokens", "tools", "of_a_later_release"])
@pytest.mark.parametrize("model", ["direct", "litellm", "anthropic"])
def test_a_null_is_a_field_left_out(ask: Ask, provider: Stub, model: str, name: str) -> None:
    assert ask(model, **{name: None}).status == 200
    assert name not in received(provider) or (model, name) == ("anthropic", "max_tokens")  # which it needs


def test_only_what_was_sent_goes_to_a_direct_provider(ask: Ask, provider: Stub) -> None:
    assert ask("direct").status == 200
    assert exact(received(provider)) == exact({"model": "gpt-4o", "messages": HELLO})


@pytest.mark.parametrize("name", [*PARAMETERS, "of_a_later_release"])
def test_litellm_forwards_a_parameter_or_it_is_refused_by_name(ask: Ask, provider: Stub, name: str) -> None:
    value = VALUES.get(name, LATER)
    call = ask("litellm", **BESIDE.get(name, {}) | {name: value})
    if call.status == 200:
        assert exact(received(provider)[name]) == exact(value)
    else:
        assert refused(call.status, call.json["error"]) == name
        assert provider.requests == []


@pytest.mark.parametrize("name", [*PARAMETERS, "of_a_later_release"])
def test_another_protocol_gets_a_parameter_or_it_is_refused_by_name(ask: Ask, provider: Stub, name: str) -> None:
    beside = BESIDE.get(name, {})
    call = ask("anthropic", **beside | {name: VALUES.get(name, LATER)})
    if call.status == 200:
        with_it = received(provider)
        provider.requests.clear()
        assert ask("anthropic", **{"messages": [{"role": "user", "content": "Bye"}]} | beside).status == 200
        assert with_it != received(provider), "it was dropped"
    else:
        assert refused(call.status, call.json["error"]) in {name, *beside}
        assert provider.requests == []


@pytest.mark.parametrize("name", [*EMBEDDING_PARAMETERS, "of_a_later_release"])
def test_litellm_forwards_a_parameter_of_embeddings_or_it_is_refused_by_name(
    ask: Ask, provider: Stub, name: str
) -> None:
    value = VALUES.get(name, LATER)
    call = ask("embeddings", path=EMBEDDINGS, **{"input": "Hello", name: value})
    if call.status == 200:
        assert exact(received(provider)[name]) == exact(value)
    else:
        assert refused(call.status, call.json["error"]) == name
        assert provider.requests == []


def refused(status: int, error: dict[str, Any]) -> str:
    """Return the parameter that an answer refuses by name."""
    assert (status, error["code"]) == (422, "invalid_request")
    name: str = error["param"]
    assert repr(name) in error["message"]
    return name


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("o-series", {"temperature": 0.5, "seed": 7}),
        ("anthropic", {"reasoning_effort": "nonsense", "user": "ann"}),
    ],
)
def test_a_value_that_litellm_does_not_send_is_refused_by_its_name(
    ask: Ask, provider: Stub, model: str, fields: dict[str, Any]
) -> None:
    call = ask(model, **fields)
    assert refused(call.status, call.json["error"]) == next(iter(fields))
    assert provider.requests == []


@pytest.mark.parametrize("model", ["direct", "litellm"])
def test_options_of_a_stream_are_refused_where_there_is_none(ask: Ask, provider: Stub, model: str) -> None:
    call = ask(model, stream_options={"include_usage": True})
    assert (call.status, call.json["error"]["param"]) == (422, "stream_options")
    assert provider.requests == []


# Defaults of a model.


@pytest.mark.parametrize("stream", [False, True])
def test_defaults_fill_what_a_request_leaves_out(ask: Ask, provider: Stub, stream: bool) -> None:
    assert ask("sampling", max_tokens=5, stream=stream).status == 200
    body = received(provider)
    assert (body["temperature"], body["max_tokens"]) == (0.7, 5)


def test_a_default_limit_gives_way_to_the_newer_one(ask: Ask, provider: Stub) -> None:
    assert ask("sampling", max_completion_tokens=5).status == 200
    assert "max_tokens" not in received(provider)


def test_a_default_that_the_provider_does_not_know_is_left_out(ask: Ask, provider: Stub) -> None:
    assert ask("sampling-litellm").status == 200
    assert "presence_penalty" not in received(provider)
    assert received(provider)["max_completion_tokens"] == 1024


# Messages.


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_messages_go_to_a_direct_provider_as_they_are(ask: Ask, provider: Stub, name: str) -> None:
    assert ask("direct", messages=CONVERSATIONS[name]).status == 200
    assert exact(received(provider)["messages"]) == exact(CONVERSATIONS[name])


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_messages_go_through_litellm_but_for_what_is_null(ask: Ask, provider: Stub, name: str) -> None:
    """It leaves out null, and calls the developer the system, as servers older than that role do."""
    assert ask("litellm", messages=CONVERSATIONS[name]).status == 200
    expected = [{k: v for k, v in message.items() if v is not None} for message in CONVERSATIONS[name]]
    for message in expected:
        if message["role"] == "developer":
            message["role"] = "system"
    assert exact(received(provider)["messages"]) == exact(expected)


@pytest.mark.parametrize("model", ["litellm", "anthropic"])
def test_content_that_litellm_does_not_know_is_refused_by_its_place(ask: Ask, provider: Stub, model: str) -> None:
    later = {"role": "user", "content": [{"type": "text", "text": "Hi."}, {"type": "later", "later": LATER}]}
    call = ask(model, messages=[*HELLO, later])
    assert (call.status, call.json["error"]["param"]) == (422, "messages.1.content.1.type")
    assert provider.requests == []


def test_content_of_a_later_release_goes_to_a_direct_provider(ask: Ask, provider: Stub) -> None:
    later = [{"role": "user", "content": [{"type": "later", "later": LATER}]}]
    assert ask("direct", messages=later).status == 200
    assert exact(received(provider)["messages"]) == exact(later)


def test_what_litellm_can_not_translate_is_not_tried_again(ask: Ask, provider: Stub) -> None:
    with structlog.testing.capture_logs() as lines:
        call = ask("anthropic", tools=[{"type": "function", "function": "weather"}])
        assert (call.status, call.json["error"]["code"]) == (400, "invalid_request")
        assert "can't be translated" in call.json["detail"]
        assert "tried" not in request_line(lines)
    assert provider.requests == []


def test_fields_of_anthropic_reach_anthropic(ask: Ask, provider: Stub) -> None:
    assert ask("anthropic", messages=CONVERSATIONS["fields of providers"]).status == 200
    body = received(provider)
    cached = {"cache_control": {"type": "ephemeral"}}
    assert body["system"] == [{"type": "text", "text": "Long."} | cached]
    asked, answered, _ = body["messages"]
    assert asked["content"] == [{"type": "text", "text": "Hi."} | cached]
    assert answered["content"][0] == {"type": "thinking", "thinking": "They greet me.", "signature": "c2ln"}


# Round trips: what a provider says comes back to it as it was.


@pytest.mark.parametrize("model", ["direct", "litellm", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_make_a_round_trip(ask: Ask, provider: Stub, model: str, stream: bool) -> None:
    arguments = '{"city": "Zürich"}'
    provider.queue(Behaviour(tool_calls=(("weather", arguments), ("weather", '{"city": "Bern"}'))))
    first = ask(model, tools=[TOOL], stream=stream)
    message = assembled(list(first.events)) if stream else first.json["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "weather"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == json.loads(arguments)

    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in message["tool_calls"]]
    provider.requests.clear()
    second = ask(model, tools=[TOOL], messages=[*HELLO, message, *results])
    assert second.json["content"] == TEXT
    sent = received(provider)["messages"]
    if model == "anthropic":
        assert [part["input"]["city"] for part in sent[1]["content"]] == ["Zürich", "Bern"]
        assert [part["tool_use_id"] for part in sent[2]["content"]] == [part["id"] for part in sent[1]["content"]]
    else:
        assert exact(sent[1]["tool_calls"]) == exact(message["tool_calls"])
        assert exact(sent[2:]) == exact(results)


THOUGHT = {"type": "thinking", "thinking": "They greet me.", "signature": "c2ln"}


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_of_anthropic_makes_a_round_trip(ask: Ask, provider: Stub, stream: bool) -> None:
    begun = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "stop_sequence": None}
    usage = {"input_tokens": 1, "output_tokens": 1}
    if stream:
        delta = {"type": "content_block_delta", "index": 0}
        body = sse(
            {"type": "message_start", "message": begun | {"content": [], "stop_reason": None, "usage": usage}},
            {"type": "content_block_start", "index": 0, "content_block": THOUGHT | {"thinking": "", "signature": ""}},
            delta | {"delta": {"type": "thinking_delta", "thinking": THOUGHT["thinking"]}},
            delta | {"delta": {"type": "signature_delta", "signature": THOUGHT["signature"]}},
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hello."}},
            {"type": "content_block_stop", "index": 1},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"},
        )
    else:
        content = [THOUGHT, {"type": "text", "text": "Hello."}]
        body = json.dumps(begun | {"content": content, "stop_reason": "end_turn", "usage": usage}).encode()
    kind = "text/event-stream" if stream else "application/json"
    provider.queue(Behaviour(body=body, headers={"content-type": kind}))
    first = ask("anthropic", reasoning_effort="low", stream=stream)
    message = assembled(list(first.events)) if stream else first.json["choices"][0]["message"]
    assert message["reasoning_content"] == THOUGHT["thinking"]
    assert message["content"] == "Hello."

    provider.requests.clear()
    assert ask("anthropic", reasoning_effort="low", messages=[*HELLO, message, *HELLO]).status == 200
    assert received(provider)["messages"][1]["content"][0] == THOUGHT


@pytest.mark.parametrize("model", ["direct", "litellm"])
@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_makes_a_round_trip(ask: Ask, provider: Stub, model: str, stream: bool) -> None:
    message = {"role": "assistant", "content": "Hello.", "reasoning_content": "They greet me."}
    choice = {"index": 0, "finish_reason": "stop"} | {"delta" if stream else "message": message}
    kind = "chat.completion.chunk" if stream else "chat.completion"
    answer = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "r1", "choices": [choice]}
    provider.queue(
        Behaviour(body=sse(answer, "[DONE]"), headers={"content-type": "text/event-stream"})
        if stream
        else Behaviour(body=json.dumps(answer).encode())
    )
    first = ask(model, stream=stream)
    said = assembled(list(first.events)) if stream else first.json["choices"][0]["message"]
    assert (said["content"], said["reasoning_content"]) == (message["content"], message["reasoning_content"])

    provider.requests.clear()
    assert ask(model, messages=[*HELLO, said, *HELLO]).status == 200
    sent = received(provider)["messages"][1]
    assert (sent["content"], sent["reasoning_content"]) == (message["content"], message["reasoning_content"])


def sse(*events: Any) -> bytes:
    """Return events of a stream, in OpenAI's form and in Anthropic's."""
    parts = []
    for event in events:
        name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
        parts.append(f"{name}data: {event if isinstance(event, str) else json.dumps(event)}\n\n")
    return "".join(parts).encode()


def assembled(events: list[str]) -> dict[str, Any]:
    """Return the message that a stream's deltas make up, as a client would send it back."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: dict[int, dict[str, Any]] = {}
    for chunk in chunks_of(events):
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                if delta.get(name):
                    message[name] = (message.get(name) or "") + delta[name]
            for part in delta.get("thinking_blocks") or []:
                [block] = message.setdefault("thinking_blocks", [{"thinking": "", "signature": ""}])
                block |= part | {name: block[name] + part.get(name, "") for name in ("thinking", "signature")}
            for part in delta.get("tool_calls") or []:
                call = calls.setdefault(part["index"], {"id": "", "type": "function", "function": {}})
                call["id"] += part.get("id") or ""
                for name, text in part["function"].items():
                    call["function"][name] = call["function"].get(name, "") + (text or "")
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message


# What LiteLLM would obey.


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Stub]:
    """An address to which a client would like to send our key."""
    with Stub() as stub:
        yield stub


def controls(elsewhere: Stub) -> dict[str, Any]:
    """Return everything that LiteLLM takes from its caller beside OpenAI's parameters, with values that would do."""
    import litellm
    from litellm.types.utils import all_litellm_params

    url = f"{elsewhere.url}/v1"
    values: dict[str, Any] = {
        "api_base": url,
        "base_url": url,
        "api_key": "sk-theirs",
        "custom_llm_provider": "anthropic",
        "extra_body": {"api_base": url},
        "extra_headers": {"authorization": "Bearer theirs"},
        "fallbacks": [{"model": "openai/gpt-4o", "api_base": url}],
        "headers": {"authorization": "Bearer theirs"},
        "metadata": {"api_base": url},
        "mock_response": "A free answer.",
        "mock_tool_calls": [TOOL_CALL],
        "proxies": {"http": url},
        "litellm_params": {"api_base": url},
        "model_list": [{"model_name": "litellm", "litellm_params": {"model": "openai/gpt-4o", "api_base": url}}],
    }
    names = {*inspect.signature(litellm.acompletion).parameters, *all_litellm_params, *values}
    return {
        name: values.get(name, True) for name in sorted(names - {*PARAMETERS, *OF_THE_CLIENT, "kwargs", "thinking"})
    }


def test_controls_of_litellm_are_refused_by_name(ask: Ask, provider: Stub, elsewhere: Stub) -> None:
    for name, value in controls(elsewhere).items():
        call = ask("litellm", **{name: value})
        assert refused(call.status, call.json["error"]) == name
        call.leave()
    assert provider.requests == elsewhere.requests == []


def test_controls_of_litellm_are_refused_by_name_for_embeddings(ask: Ask, provider: Stub, elsewhere: Stub) -> None:
    for name, value in controls(elsewhere).items():
        call = ask("embeddings", path=EMBEDDINGS, input="Hello", **{name: value})
        assert refused(call.status, call.json["error"]) == name
        call.leave()
    assert provider.requests == elsewhere.requests == []


def test_controls_of_litellm_mean_nothing_to_the_direct_way(ask: Ask, provider: Stub, elsewhere: Stub) -> None:
    for name, value in controls(elsewhere).items():
        provider.requests.clear()
        call = ask("direct", **{name: value})
        assert call.json["content"] == TEXT
        assert exact(received(provider)[name]) == exact(value)
        assert "sk-theirs" not in str(provider.requests[0].headers)
        call.leave()
    assert elsewhere.requests == []
