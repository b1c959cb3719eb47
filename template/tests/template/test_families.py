"""Every provider's own protocol, on each way that reaches it: whole answers, or the right error in time."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.llm.wire import Wire
from tests.stub import PROMPT_TOKENS, TEXT, Behaviour, Stub
from tests.stub.gemini import RETRY_AFTER
from tests.template.running import Ask, running
from tests.wire import Call, chunks_of

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")


@dataclass(frozen=True)
class Family:
    """A way to a provider.

    Attributes:
        upstream: what its row of the model table says.
        path: where its API is at the stub.
        litellm: through LiteLLM; else direct.
        tells_usage: whether the usage of a stream is told. LiteLLM does not read Cohere's.
    """

    upstream: str
    path: str = ""
    litellm: bool = False
    tells_usage: bool = True


FAMILIES = {
    "gemini": Family("gemini/gemini-2.5-flash", "/v1beta", litellm=True),
    "ollama": Family("ollama_chat/llama3.2", litellm=True),
    "bedrock": Family("bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", litellm=True),
    "bedrock nova": Family("bedrock/converse/amazon.nova-pro-v1:0", litellm=True),
    "cohere": Family("cohere_chat/command-a-03-2025", "/v2/chat", litellm=True, tells_usage=False),
    "azure via LiteLLM": Family("azure/gpt-4o", "/azure", litellm=True),
    "mistral via LiteLLM": Family("mistral/mistral-large-latest", "/mistral/v1", litellm=True),
    "vllm via LiteLLM": Family("hosted_vllm/llama", "/vllm/v1", litellm=True),
    "azure": Family("azure/gpt-4o", "/azure"),
    "deepseek": Family("deepseek/deepseek-chat", "/deepseek/beta"),
    "gemini like OpenAI": Family("gemini/gemini-2.5-flash", "/google/v1beta/openai"),
    "groq": Family("groq/llama-3.3-70b", "/groq/openai/v1"),
    "mistral": Family("mistral/mistral-large-latest", "/mistral/v1"),
    "ollama like OpenAI": Family("ollama/llama3.2", "/ollama"),
    "openrouter": Family("openrouter/openai/gpt-4o", "/openrouter/api/v1"),
    "vllm": Family("hosted_vllm/llama", "/vllm/v1"),
    "xai": Family("xai/grok-4", "/xai/v1"),
}
EACH = pytest.mark.parametrize("family", FAMILIES)
KINDS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

AWS = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
    "AWS_REGION_NAME": "us-east-1",
}
COMPLETION_TOKENS = Behaviour().completion_tokens
AT_ONCE = 10
"""Seconds, generous: an upstream call is closed some milliseconds after its client has left."""

PLACE = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Tells it.", "parameters": PLACE}}
    for name in ("weather", "news")
]
CALLS = (("weather", '{"city": "Zürich", "days": 3}'), ("news", '{"city": "世界", "days": 1}'))


@pytest.fixture(scope="module")
def provider() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def server(key: str, provider: Stub) -> Iterator[Ask]:
    rows = {
        name: {
            "upstream": family.upstream,
            "api_base": provider.url + family.path,
            "protocol": "litellm" if family.litellm else "openai",
        }
        for name, family in FAMILIES.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AWS.items():
            patch.setenv(name, value)
        with running(key, rows) as ask:
            yield ask


@pytest.fixture
def ask(server: Ask, provider: Stub) -> Iterator[Ask]:
    """Ask a model of a provider that has received nothing yet and answers well."""
    provider.requests.clear()
    provider.default = Behaviour()
    yield server
    provider.default = Behaviour()


@dataclass
class Outcome:
    """What a client got.

    Attributes:
        text: the text.
        reasoning: what the model thought.
        reasons: finish reasons.
        calls: names and arguments of the tool calls.
        usage: tokens of the prompt and of the answer.
        error: the code of the error, if there is one.
        message: its sentence.
        begun: whether the error came in mid-stream.
    """

    text: str = ""
    reasoning: str = ""
    reasons: list[str] = field(default_factory=list)
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    usage: tuple[int, int] | None = None
    error: str | None = None
    message: str = ""
    begun: bool = False

    def add(self, choice: dict[str, Any], said: dict[str, Any]) -> None:
        """Add a choice, and its message or delta."""
        self.text += said.get("content") or ""
        self.reasoning += said.get("reasoning_content") or ""
        if choice.get("finish_reason"):
            self.reasons.append(choice["finish_reason"])
        for place, call in enumerate(said.get("tool_calls") or ()):
            index = call.get("index", place)
            name, arguments = self.calls.get(index, ("", ""))
            function = call["function"]
            self.calls[index] = (name + (function.get("name") or ""), arguments + (function.get("arguments") or ""))


def outcome(call: Call) -> Outcome:
    """Return what a call has brought, read to its end."""
    if call.status != 200:
        error = call.json["error"]
        return Outcome(error=error["code"], message=error["message"])
    found = Outcome()
    streamed = call.headers["content-type"].startswith("text/event-stream")
    parts = chunks_of(list(call.events)) if streamed else [call.json]
    for part in parts:
        if error := part.get("error"):
            found.error, found.message, found.begun = error["code"], error["message"], True
            continue
        for choice in part["choices"]:
            found.add(choice, choice["delta" if streamed else "message"])
        if usage := part.get("usage"):
            found.usage = usage["prompt_tokens"], usage["completion_tokens"]
    return found


def of_all(ask: Ask, **fields: Any) -> dict[str, Outcome]:
    """Ask all families at once."""
    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        return dict(zip(FAMILIES, pool.map(lambda family: outcome(ask(family, **fields)), FAMILIES), strict=True))


# Good answers.


@EACH
@KINDS
def test_an_answer_is_whole_and_ends_once(ask: Ask, family: str, stream: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    found = outcome(ask(family, stream=stream, **options))
    assert (found.text, found.reasons, found.error) == (TEXT, ["stop"], None)
    if FAMILIES[family].tells_usage or not stream:
        assert found.usage == (PROMPT_TOKENS, COMPLETION_TOKENS)


@EACH
@KINDS
def test_tool_calls_are_whole(ask: Ask, provider: Stub, family: str, stream: bool) -> None:
    provider.default = Behaviour(tool_calls=CALLS)
    found = outcome(ask(family, stream=stream, tools=TOOLS))
    assert (found.reasons, found.error) == (["tool_calls"], None)
    assert [name for name, _ in found.calls.values()] == [name for name, _ in CALLS]
    assert [json.loads(said) for _, said in found.calls.values()] == [json.loads(meant) for _, meant in CALLS]
    offered = [r.body.get("tools") or r.body.get("toolConfig") for r in provider.requests]  # Ollama is asked more
    assert any(offered)


@pytest.mark.parametrize("family", ["cohere", "gemini", "mistral via LiteLLM"])
def test_an_end_for_a_tool_whose_call_is_lost_is_an_error(ask: Ask, provider: Stub, family: str) -> None:
    body, kind = {
        "cohere": ('{"type": "message-end", "id": "a", "delta": {"finish_reason": "TOOL_CALL"}}\n', "stream+json"),
        "gemini": ('data: {"candidates": [{"content": {}, "finishReason": "TOOL_CALL"}]}\n\n', "event-stream"),
        "mistral via LiteLLM": (
            (
                'data: {"id": "a", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}\n\n'
                "data: [DONE]\n\n"
            ),
            "event-stream",
        ),
    }[family]
    provider.default = Behaviour(body=body.encode(), headers={"content-type": f"text/{kind}"})
    found = outcome(ask(family, stream=True, tools=TOOLS))
    assert (found.reasons, found.error) == ([], "provider_error")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ('"finish_reason": "tool_calls"', (True, True)),
        ('"stopReason":"tool_use"', (True, True)),
        ('"finish_reason": "stop"', (True, False)),
        ('"stop_reason": "not_finished"', (False, False)),
        ('"finishReason": "FINISH_REASON_UNSPECIFIED"', (False, False)),
    ],
)
def test_a_providers_end_is_known_wherever_its_packets_are_cut(end: str, told: tuple[bool, bool]) -> None:
    stream = ('data: {"id": "a", ' + end + "}\n\n").encode()
    for cut in range(len(stream)):
        wire = Wire()
        wire.responds(200, {"content-type": "text/event-stream"}, None)
        wire.receives(stream[:cut])
        wire.receives(stream[cut:])
        assert (wire.ended, wire.calls_tools) == told, stream[:cut]


@KINDS
@pytest.mark.parametrize("family", ["gemini", "ollama", "bedrock"])
def test_what_a_model_thinks_is_kept_apart(ask: Ask, provider: Stub, family: str, stream: bool) -> None:
    provider.default = Behaviour(thought="They greet me.")
    found = outcome(ask(family, stream=stream))
    assert (found.text, found.reasoning, found.reasons) == (TEXT, "They greet me.", ["stop"])


@pytest.mark.parametrize("family", ["gemini", "ollama", "bedrock", "cohere"])
def test_an_image_reaches_a_provider(ask: Ask, provider: Stub, family: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    call = ask(family, messages=[{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}])
    assert outcome(call).text == TEXT
    assert "iVBORw0KGgo=" in json.dumps(provider.requests[-1].body)


@KINDS
@pytest.mark.parametrize("blocked", ["prompt", "answer"])
def test_what_google_blocks_ends_as_content_filter(ask: Ask, provider: Stub, blocked: Any, stream: bool) -> None:
    provider.default = Behaviour(blocked=blocked)
    found = outcome(ask("gemini", stream=stream))
    assert (found.reasons, found.error) == (["content_filter"], None)
    assert found.text == (TEXT if stream and blocked == "answer" else "")


# Answers that are cut off.

CUTS = {
    **{f"after {count} events": Behaviour(cut_after=count) for count in (0, 1, 2, 4, 6)},
    **{f"after {count} bytes": Behaviour(cut_at=count) for count in (1, 77, 200, 433, 677)},
    "within a character": Behaviour(cut_at="世".encode()[:2]),
    "within a word": Behaviour(cut_at=b" stu", pace=0.005),
    "by a reset": Behaviour(cut_after=4, reset=True, pace=0.005),
    "without a finish reason": Behaviour(finished=0, done=False),
}


@EACH
@pytest.mark.parametrize("name", CUTS)
def test_a_stream_that_is_cut_off_ends_with_an_error(ask: Ask, provider: Stub, family: str, name: str) -> None:
    provider.default = CUTS[name]
    found = outcome(ask(family, stream=True))
    assert (found.error, found.reasons) == ("provider_error", [])
    assert TEXT.startswith(found.text)


@EACH
@pytest.mark.parametrize("behaviour", [Behaviour(cut_after=2), Behaviour(bad_json_at=0)], ids=["cut", "broken JSON"])
def test_an_answer_that_is_not_whole_is_an_error(ask: Ask, provider: Stub, family: str, behaviour: Behaviour) -> None:
    provider.default = behaviour
    assert outcome(ask(family)).error == "provider_error"


@EACH
def test_an_event_of_broken_json_is_an_error(ask: Ask, provider: Stub, family: str) -> None:
    provider.default = Behaviour(bad_json_at=4)
    found = outcome(ask(family, stream=True))
    assert (found.error, found.reasons) == ("provider_error", [])


# Errors.

WORDS = "The field of this request is too blue."
STATUSES = {
    400: (400, None),
    422: (400, None),
    401: (502, "provider_misconfigured"),
    402: (502, "provider_misconfigured"),
    403: (502, "provider_misconfigured"),
    404: (502, "provider_misconfigured"),
    429: (429, "provider_rate_limited"),
    500: (502, "provider_error"),
    503: (502, "provider_error"),
}


@EACH
@KINDS
@pytest.mark.parametrize("status", STATUSES)
def test_an_error_of_the_provider_gets_its_status(
    ask: Ask, provider: Stub, family: str, status: int, stream: bool
) -> None:
    provider.default = Behaviour(status=status, message=WORDS)
    call = ask(family, stream=stream)
    found = outcome(call)
    expected, code = STATUSES[status]
    assert call.status == expected
    assert found.error == code if code else found.error and not found.error.isdecimal()
    assert (found.message == WORDS) if expected == 400 else (WORDS not in call.body.decode())
    waits = status == 429 and family.startswith("gemini")
    assert call.headers["retry-after"] == (str(RETRY_AFTER) if waits else None)
    assert len(provider.requests) == 1


@EACH
def test_retry_after_of_a_header_counts(ask: Ask, provider: Stub, family: str) -> None:
    provider.default = Behaviour(status=429, headers={"retry-after": "77"})
    assert ask(family).headers["retry-after"] == "77"


@EACH
def test_a_connection_that_is_closed_without_an_answer_is_an_error(ask: Ask, provider: Stub, family: str) -> None:
    provider.default = Behaviour(status=0)
    found = outcome(ask(family))
    assert (found.error, "can't be reached" in found.message) == ("provider_error", True)


@EACH
def test_an_error_in_place_of_an_answer_is_an_error(ask: Ask, provider: Stub, family: str) -> None:
    provider.default = Behaviour(error_at=0)
    assert outcome(ask(family)).error == "provider_error"


@EACH
@pytest.mark.parametrize("index", [0, 3])
def test_an_error_in_mid_stream_ends_it(ask: Ask, provider: Stub, family: str, index: int) -> None:
    provider.default = Behaviour(error_at=index, pace=0.005)
    found = outcome(ask(family, stream=True))
    assert (found.error, found.reasons) == ("provider_error", [])
    assert Behaviour.message not in found.message


def test_a_stream_that_litellm_can_not_read_is_an_error(ask: Ask, provider: Stub) -> None:
    """Cohere's, as server-sent events."""
    body = b'event: message-start\ndata: {"type": "message-start", "delta": {"message": {"role": "assistant"}}}\n\n'
    provider.default = Behaviour(body=body, headers={"content-type": "text/event-stream"})
    assert outcome(ask("cohere", stream=True)).error == "provider_error"


# Time.


def test_a_first_event_that_does_not_come_is_a_504(ask: Ask, provider: Stub) -> None:
    for behaviour in (Behaviour(delay_headers=60), Behaviour(stall_after=0)):
        provider.default = behaviour
        with ask.waiting(first_token=0.5):
            found = of_all(ask, stream=True)
        assert {outcome.error for outcome in found.values()} == {"provider_timeout"}
        assert not any(outcome.begun for outcome in found.values())


def test_a_stream_that_falls_silent_is_a_504(ask: Ask, provider: Stub) -> None:
    provider.default = Behaviour(stall_after=4)
    with ask.waiting(idle=0.5):
        found = of_all(ask, stream=True)
    assert {outcome.error for outcome in found.values()} == {"provider_timeout"}
    assert all("(timeouts.idle)" in outcome.message for outcome in found.values())


def test_an_answer_that_does_not_come_is_a_504(ask: Ask, provider: Stub) -> None:
    provider.default = Behaviour(stall_after=2)
    with ask.waiting(total=0.5):
        found = of_all(ask)
    assert {outcome.error for outcome in found.values()} == {"provider_timeout"}


# A client that leaves.

MOMENTS = {
    "a stream that flows": Behaviour(repeat=1000, pace=0.001),
    "a stream that is silent": Behaviour(stall_after=4),
    "before the headers": Behaviour(delay_headers=60),
    "before the first event": Behaviour(stall_after=0),
}


@EACH
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_client_that_leaves_closes_the_upstream_call(ask: Ask, provider: Stub, family: str, moment: str) -> None:
    provider.default = MOMENTS[moment]
    with ask(family, stream=True) as call:
        assert provider.wait_until(lambda: bool(provider.requests))
        if "stream" in moment:
            next(call.events)
    assert provider.requests[0].closed.wait(AT_ONCE)
