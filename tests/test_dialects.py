"""Whatever a chat model says, its stream in another dialect is one that the dialect's own clients can read.

Hypothesis makes up what the model says: text, refusals, reasoning and tool calls, in any order and split anywhere.
"""

import base64
import contextlib
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import openresponses_types as spec
import pytest
from app.config import ModelEntry
from app.dialects.messages import Messages, MessagesRequest
from app.dialects.responses import Responses, ResponsesRequest
from app.errors import AppError, ProviderError
from app.llm.bridge import MISREAD
from app.llm.native import NativeRelay
from app.llm.relay import Relay
from app.llm.stream_state import StreamState
from app.llm.targets import resolve
from app.llm.translator import Translator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent
from openresponses_types import types as spec_types
from pydantic import TypeAdapter, ValidationError

Json = dict[str, Any]
TARGET = resolve("m", ModelEntry(upstream="openai/m"), {})

EVENTS = {
    next(iter(kind.model_fields["type"].annotation)).value: kind
    for name, kind in vars(spec_types).items()
    if name.endswith("StreamingEvent")
}
SDK_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": False}
CUSTOM = {"type": "custom", "name": "patch", "description": "Change a file."}
SPACE = {"type": "namespace", "name": "web", "description": "The web.", "tools": [FUNCTION | {"name": "open"}]}
CALLED = {"look": '{"a": "ü"}', "patch": '{"input": "*** Begin"}', "web__open": "{}", "unknown": ""}
"""What a model may call, by its name in chat, and with which arguments."""


CITATION = {"url": "https://a.b", "title": "A", "start_index": 0, "end_index": 1}
CITED = [{"type": "url_citation", "url_citation": CITATION}]


@dataclass
class Said:
    """What a model says in one answer: chat's deltas, and how it ends."""

    deltas: list[Json] = field(default_factory=list)
    reason: str = "stop"
    usage: Json | None = None

    def of(self, name: str) -> str:
        return "".join(delta[name] for delta in self.deltas if isinstance(delta.get(name), str))


def cut(text: str, places: list[int]) -> list[str]:
    """Return a text in pieces."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


@st.composite
def answers(draw: st.DrawFn, names: list[str]) -> Said:
    """Make up an answer."""
    places = st.lists(st.integers(0, 40), max_size=4)
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=24)
    deltas: list[Json] = [{"role": "assistant", "content": ""}] * draw(st.booleans())
    for kind in draw(st.lists(st.sampled_from(["content", "refusal", "reasoning_content", "reasoning"]), max_size=4)):
        deltas += [{kind: piece} for piece in cut(draw(text), draw(places))]
        deltas += [{"annotations": CITED}] * draw(st.booleans())
    calls = draw(st.lists(st.sampled_from(names), max_size=3)) if names else []
    parts: list[list[Json]] = []
    for index, name in enumerate(calls):
        first = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        more = [{"index": index, "function": {"arguments": piece}} for piece in cut(CALLED[name], draw(places))]
        parts.append([first, *more])
    while parts:  # calls may come side by side
        part = draw(st.sampled_from(parts))
        deltas.append({"tool_calls": [part.pop(0)]})
        parts = [part for part in parts if part]
    told = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
    usage = draw(st.sampled_from([None, told, told | details]))
    reason = draw(st.sampled_from(["tool_calls" if calls else "stop", "length", "content_filter"]))
    return Said(deltas, reason, usage)


def wire(said: Said) -> bytes:
    """Return the stream of an answer as a provider sends it."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in said.deltas]
    chunks: list[Json] = [head | {"choices": [choice]} for choice in choices]
    chunks.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": said.reason}]})
    if said.usage:
        chunks.append(head | {"choices": [], "usage": said.usage})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


def streamed(translator: Translator, stream: bytes, places: list[int]) -> list[Json]:
    """Return the data of a stream's events, which a client gets for a provider's packets, cut anywhere."""
    relay, out = Relay(TARGET, StreamState(wants_usage=True)), b""
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    for start, end in pairwise(edges):
        if packet := relay.feed(stream[start:end]):
            out += translator.feed(packet)
    assert relay.ended
    return events_of(out)


def events_of(out: bytes) -> list[Json]:
    found = []
    for event in out.decode().removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert found[-1]["type"] == name.removeprefix("event: ")
    return found


PLACES = st.lists(st.integers(0, 5000), max_size=12)
MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def responses(tools: list[Json], *, refers: bool = False) -> Responses:
    asked = {"model": "m", "input": "Hello", "stream": True, "tools": tools, "include": ["reasoning.encrypted_content"]}
    return Responses(ResponsesRequest.model_validate(asked), refers=refers)


def check_responses(events: list[Json], said: Said, tools: list[Json]) -> None:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    ends = {"length": "incomplete", "content_filter": "incomplete"}
    assert last["type"] == f"response.{ends.get(said.reason, 'completed')}"
    sdk = ResponseStreamState(input_tools=tools, text_format=omit)  # type: ignore[arg-type]
    for event in events:
        sdk.handle_event(SDK_EVENT.validate_python(event))
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert last["response"]["output"] == [event["item"] for event in sorted(done, key=lambda e: int(e["output_index"]))]
    for kind, name in (("output_text", "content"), ("refusal", "refusal")):
        assert "".join(e["delta"] for e in events if e["type"] == f"response.{kind}.delta") == said.of(name)
    open_items: set[int] = set()
    for event in events:
        index = event.get("output_index")
        if event["type"] == "response.output_item.added":
            open_items.add(index)  # type: ignore[arg-type]
        elif event["type"] == "response.output_item.done":
            open_items.remove(index)  # type: ignore[arg-type]
        elif index is not None:
            assert index in open_items
    assert not open_items


@MANY
@given(answers(["look", "unknown"]), PLACES, st.booleans())
def test_every_event_and_object_of_a_response_fits_the_open_specification(
    said: Said, places: list[int], refers: bool
) -> None:
    events = streamed(responses([FUNCTION], refers=refers), wire(said), places)
    for event in events:
        EVENTS[event["type"]].model_validate(event)
    check_responses(events, said, [FUNCTION])


@MANY
@given(answers(list(CALLED)), PLACES)
def test_custom_and_namespaced_calls_come_back_as_what_they_are(said: Said, places: list[int]) -> None:
    tools: list[Json] = [FUNCTION, CUSTOM, SPACE]
    events = streamed(responses(tools), wire(said), places)
    check_responses(events, said, tools)
    for item in events[-1]["response"]["output"]:
        if item.get("name") == "patch":
            assert (item["type"], item["input"]) == ("custom_tool_call", "*** Begin")
        elif item.get("name") == "open":
            assert (item["type"], item["namespace"], json.loads(item["arguments"])) == ("function_call", "web", {})
        elif item.get("name") == "look":
            assert json.loads(item["arguments"]) == {"a": "ü"}


@MANY
@given(answers(["look", "unknown"]), st.integers(0, 30))
def test_a_failed_stream_ends_in_response_failed(said: Said, after: int) -> None:
    translator = responses([FUNCTION])
    chunks = wire(said).split(b"\n\n")[:-2]
    out = b"".join(translator.feed(chunk + b"\n\n") for chunk in chunks[:after])
    events = events_of(out + translator.failed(ProviderError("It broke."), "id"))
    for event in events:
        EVENTS[event["type"]].model_validate(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    last = events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "provider_error", "message": "It broke."}
    assert all(item.get("status") != "in_progress" for item in last["response"]["output"])


@MANY
@given(answers(["look", "unknown"]))
def test_a_whole_response_is_the_one_that_the_stream_ends_with(said: Said) -> None:
    message: Json = {"role": "assistant", "content": said.of("content") or None, "refusal": said.of("refusal") or None}
    calls: dict[int, Json] = {}
    for delta in said.deltas:
        for part in delta.get("tool_calls", ()):
            call = calls.setdefault(part["index"], {"id": part.get("id"), "type": "function", **part})
            if part["function"].get("name") is None:
                call["function"] |= {"arguments": call["function"]["arguments"] + part["function"]["arguments"]}
    message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls.values()] or None
    body = {"id": "c", "model": "m-1", "choices": [{"index": 0, "message": message, "finish_reason": said.reason}]}
    whole = responses([FUNCTION]).answer(body | {"usage": said.usage})
    spec.ResponseResource.model_validate(whole)
    texts = [part for item in whole["output"] if item["type"] == "message" for part in item["content"]]
    assert "".join(part.get("text", "") for part in texts) == said.of("content")
    assert [item["name"] for item in whole["output"] if item["type"] == "function_call"] == [
        call["function"]["name"] for call in calls.values()
    ]


def messages() -> Messages:
    asked = {"model": "m", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    return Messages(MessagesRequest.model_validate(asked))


@MANY
@given(answers(["look", "unknown"]), PLACES)
def test_the_blocks_of_a_message_begin_and_end_one_after_the_other(said: Said, places: list[int]) -> None:
    events = streamed(messages(), wire(said), places)
    assert events[0]["type"] == "message_start"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    blocks: list[Json] = []
    is_open = False
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            is_open = True
            blocks.append(event["content_block"] | {"said": ""})
            continue
        assert is_open
        assert event["index"] == len(blocks) - 1
        if event["type"] == "content_block_stop":
            is_open = False
        elif event["delta"]["type"] != "signature_delta":
            blocks[-1]["said"] += event["delta"][
                event["delta"]["type"].replace("_delta", "").replace("input", "partial")
            ]
    assert not is_open
    assert "".join(b["said"] for b in blocks if b["type"] == "text") == "".join(
        delta.get("content") or delta.get("refusal") or "" for delta in said.deltas
    )
    calls = [b for b in blocks if b["type"] == "tool_use"]
    names = [p["function"]["name"] for d in said.deltas for p in d.get("tool_calls", ()) if "id" in p]
    assert [call["name"] for call in calls] == names
    assert all(json.loads(call["said"] or "{}") == json.loads(CALLED[call["name"]] or "{}") for call in calls)
    reasons = {"length": "max_tokens", "content_filter": "refusal"}
    reason = events[-2]["delta"]["stop_reason"]
    assert reason == reasons.get(said.reason, "tool_use" if calls else "end_turn")
    if said.usage:
        used = events[-2]["usage"]
        assert used["input_tokens"] + (used["cache_read_input_tokens"] or 0) == 9


# --- Requests ---------------------------------------------------------------------------------------------------------

TEXT_BLOCK = {"type": "text", "text": "Hi.", "cache_control": {"type": "ephemeral"}}
CARRIED = base64.urlsafe_b64encode(b'[{"type":"message","id":"msg_1","role":"assistant","content":"Hi."}]').decode()
FILLED_RESPONSES: Json = {
    "model": "m",
    "instructions": "Be nice.",
    "input": [
        {"role": "developer", "content": [{"type": "input_text", "text": "Hi."}]},
        {
            "role": "user",
            "content": [{"type": "input_image", "image_url": "data:,"}, {"type": "input_file", "file_data": ""}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "chat-1.e30="},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "function_call", "call_id": "1", "name": "open", "namespace": "web", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "2", "name": "patch", "input": "***"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "."}]},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "done"},
        {"type": "item_reference", "id": "msg_1"},
        {"type": "item_reference", "id": f"rs_chat-1.{CARRIED}"},
    ],
    "tools": [FUNCTION, CUSTOM | {"format": {"type": "grammar", "syntax": "lark", "definition": "a"}}, SPACE],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": {}, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "max_output_tokens": 9,
    "top_logprobs": 1,
    "stream": True,
}
FILLED_MESSAGES: Json = {
    "model": "m",
    "max_tokens": 9,
    "system": [TEXT_BLOCK],
    "messages": [
        {"role": "user", "content": [TEXT_BLOCK, {"type": "image", "source": {"type": "url", "url": "https://a.b/c"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "", "signature": "chat-1.e30="},
                {"type": "tool_use", "id": "1", "name": "look", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "is_error": True, "content": [TEXT_BLOCK]},
                {"type": "document", "title": "a", "source": {"type": "content", "content": [TEXT_BLOCK]}},
                {"type": "search_result", "title": "a", "source": "b", "content": [TEXT_BLOCK]},
            ],
        },
        {"role": "system", "content": "Now."},
    ],
    "tools": [{"name": "look", "input_schema": {"type": "object"}}, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
    "stop_sequences": ["a"],
    "thinking": {"type": "enabled", "budget_tokens": 4},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "a"]), inner, max_size=2)
    ),
    max_leaves=3,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, more in inner for place in places(more, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copied: Any = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = replaced(value[path[0]], path[1:], by)
    return copied


def translate(kind: type[Responses | Messages], asked: Json) -> Translator | None:
    """Translate a request, if it is one; raise nothing but our own errors."""
    request: Any = ResponsesRequest if kind is Responses else MessagesRequest
    try:
        translator = kind(request.model_validate(asked))
        translator.check()
    except (ValidationError, AppError):
        return None
    return translator


@pytest.mark.parametrize(("kind", "filled"), [(Responses, FILLED_RESPONSES), (Messages, FILLED_MESSAGES)])
def test_a_request_is_translated_or_refused_whatever_is_in_it(kind: type[Responses | Messages], filled: Json) -> None:
    assert places(filled)

    @MANY
    @given(st.sampled_from(places(filled)[1:]), JSON)
    def check(place: tuple[Any, ...], by: Any) -> None:
        if translator := translate(kind, replaced(filled, place, by)):
            translator.feed(wire(Said([{"content": "Hi."}])))

    check()


# --- Streams that are cut ---------------------------------------------------------------------------------------------

WAYS = {
    (kind, way): (make, way)
    for kind, make in {"responses": lambda: responses([FUNCTION]), "messages": messages}.items()
    for way in ("translated", "passed through")
}
COMPLETE = {"response.completed", "response.incomplete", "message_stop"}
RICH = Said(
    [
        {"role": "assistant", "reasoning_content": "Hm, "},
        {"reasoning_content": "ü."},
        {"content": "One \n\n"},
        {"content": "moment. 👋"},
        {"tool_calls": [{"index": 0, "id": "call_0", "function": {"name": "look", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": "ü"}'}}]},
    ],
    "tool_calls",
    {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
)


def got(make: Any, way: str, said: Said, cut_at: int, places: list[int]) -> tuple[bytes, int, bytes]:
    """Return what a client gets of a stream that ends after so many bytes; how many it has; and all that it gets of it.

    What is passed through is what a bridge makes of the same answer.
    """
    whole, translator = wire(said), make()
    if way == "passed through":
        whole = translator.feed(whole)
        translator = make()
    cut_at %= len(whole) + 1
    stream = whole[:cut_at]
    state = StreamState(wants_usage=True)
    relay = NativeRelay(TARGET, state, translator) if way == "passed through" else Relay(TARGET, state)
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    out = b""
    for start, end in [*pairwise(edges), (0, 0)]:  # in the end, the connection is closed
        if relay.ended:
            break
        packet = relay.feed(stream[start:end])
        out += packet if way == "passed through" else translator.feed(packet)
    if relay.failure:
        out += translator.failed(relay.failure, "id")
    return out, len(whole), whole


def check_cut(events: list[Json], whole: bytes, cut_at: int) -> None:
    kinds = [event["type"] for event in events]
    finished = whole[:cut_at].count(b'"finish_reason": "') + len(COMPLETE & set(kinds))
    if kinds[-1] in COMPLETE:
        assert finished, "all has come but what follows the end"
        assert not {"error", "response.failed"} & set(kinds)
        return
    assert kinds[-1] in ("response.failed", "error")
    assert not COMPLETE & set(kinds)
    if kinds[-1] == "response.failed":
        assert events[-1]["response"]["status"] == "failed"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        EVENTS["response.failed"].model_validate(events[-1])


@pytest.mark.parametrize("case", WAYS)
def test_a_stream_that_is_cut_at_any_byte_fails(case: tuple[str, str]) -> None:
    make, way = WAYS[case]
    size = got(make, way, RICH, 0, [])[1]
    ends = set()
    for place in range(size + 1):
        out, _, whole = got(make, way, RICH, place, [])
        events = events_of(out)
        check_cut(events, whole, place)
        ends.add(events[-1]["type"])
    assert len(ends) == 2


@pytest.mark.parametrize("case", WAYS)
def test_a_stream_of_any_answer_that_is_cut_anywhere_fails(case: tuple[str, str]) -> None:
    make, way = WAYS[case]

    @settings(MANY, max_examples=50)
    @given(answers(["look", "unknown"]), st.integers(0, 100_000), PLACES)
    def check(said: Said, cut_at: int, places: list[int]) -> None:
        out, size, whole = got(make, way, said, cut_at, places)
        check_cut(events_of(out), whole, cut_at % (size + 1))

    check()


ODD: dict[str, Json] = {
    "without numbers": {"response": {"output": []}},
    "with a number that is none": {"response": {"output": []}, "sequence_number": "1"},
    "with items that are none": {"response": {"output": ["item"]}, "sequence_number": 0},
    "with an output that is none": {"response": {"output": 5}, "sequence_number": 0},
}


@pytest.mark.parametrize("why", ODD)
def test_the_failure_of_an_odd_upstream_is_told_all_the_same(why: str) -> None:
    translator = responses([])
    relay = NativeRelay(TARGET, StreamState(), translator)
    delta = {"type": "response.output_text.delta", "delta": "Hi."}
    for event in ({"type": "response.created"} | ODD[why], delta):
        assert relay.feed(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()))
    assert not relay.feed(b"")
    assert relay.failure
    [failed] = events_of(translator.failed(relay.failure, "id"))
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")


FILLED_CHUNKS: list[Json] = [
    {
        "model": "m-1",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "delta": {
                    "content": "Hi.",
                    "refusal": "No.",
                    "reasoning_content": "Hm.",
                    "reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "index": 0}],
                    "annotations": CITED,
                    "tool_calls": [{"index": 0, "id": "1", "function": {"name": "look", "arguments": "{}"}}],
                },
                "logprobs": {"content": [{"token": "Hi", "logprob": -1, "bytes": None, "top_logprobs": []}]},
                "finish_reason": None,
            }
        ],
    },
    {
        "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1"}}]}}],
    },
    {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "a"}],
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    },
]


@pytest.mark.parametrize("make", [lambda: responses([FUNCTION], refers=True), messages], ids=["responses", "messages"])
def test_whatever_is_in_a_chunk_the_stream_is_complete_or_has_failed(make: Any) -> None:
    @MANY
    @given(st.sampled_from(places(FILLED_CHUNKS)[1:]), JSON)
    def check(place: tuple[Any, ...], by: Any) -> None:
        translator, relay = make(), Relay(TARGET, StreamState(wants_usage=True))
        chunks = replaced(FILLED_CHUNKS, place, by)
        out = b""
        stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        try:
            for packet in (stream.encode(), b""):
                if not relay.ended:
                    out += translator.feed(relay.feed(packet))
        except MISREAD:
            relay.failure = ProviderError("It can't be read.")
        if relay.failure:
            out += translator.failed(relay.failure, "id")
        kinds = [event["type"] for event in events_of(out)]
        ends = COMPLETE | {"response.failed", "error"}
        assert [kind for kind in kinds if kind in ends] == kinds[-1:]
        assert (kinds[-1] in COMPLETE) == (relay.failure is None)

    check()


@pytest.mark.parametrize("make", [lambda: responses([FUNCTION], refers=True), messages], ids=["responses", "messages"])
def test_whatever_is_in_a_whole_answer_it_is_translated_or_can_not_be_read(make: Any) -> None:
    message = FILLED_CHUNKS[0]["choices"][0]["delta"]
    body = FILLED_CHUNKS[2] | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    @MANY
    @given(st.sampled_from(places(body)[1:]), JSON)
    def check(place: tuple[Any, ...], by: Any) -> None:
        with contextlib.suppress(*MISREAD):
            assert make().answer(replaced(body, place, by))

    check()
