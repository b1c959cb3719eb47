"""What odd models say, and odd requests ask, in Responses and Messages."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from app.dialects.messages import Messages, MessagesRequest
from app.dialects.responses import Responses, ResponsesRequest
from app.errors import AppError

Json = dict[str, Any]
LONG = "mcp__plugin_of_a_team__" + "find_all_the_things_that_somebody_may_have_lost_" * 2
SCHEMA = {"type": "object", "properties": {}}


def responses(**fields: Any) -> Responses:
    return Responses(ResponsesRequest.model_validate({"model": "m", "input": "Hello"} | fields))


def messages(**fields: Any) -> Messages:
    hello = [{"role": "user", "content": "Hello"}]
    return Messages(MessagesRequest.model_validate({"model": "m", "max_tokens": 9, "messages": hello} | fields))


MAKE: dict[str, Callable[..., Any]] = {"responses": responses, "messages": messages}
EACH = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def streamed(translator: Any, *deltas: Json, **last: Any) -> list[Json]:
    """Return the events for a stream of these deltas, and of a last chunk with these fields."""
    chunks: list[Json] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]} | last)
    packet = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    lines = translator.feed(packet.encode()).decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def whole(translator: Any, message: Json, **more: Any) -> Json:
    """Return the whole answer for a message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None} | message, "finish_reason": "stop"}
    answer: Json = translator.answer({"id": "c", "model": "m", "choices": [choice]} | more)
    return answer


def calls_of(events: list[Json]) -> list[tuple[str, str]]:
    """Return the name and the arguments of each tool call in a stream."""
    if events[-1]["type"] == "response.completed":
        items = events[-1]["response"]["output"]
        return [(item["name"], item["arguments"]) for item in items if item["type"] == "function_call"]
    names = [event["content_block"]["name"] for event in events if event["type"] == "content_block_start"]
    said = [""] * len(names)
    for event in events:
        if event["type"] == "content_block_delta":
            said[event["index"]] += event["delta"]["partial_json"]
    return list(zip(names, said, strict=True))


def part(index: int | None, **function: Any) -> Json:
    call_id = function.pop("id", None)
    return {"tool_calls": [{"index": index, "id": call_id, "function": function}]}


# --- Tools ------------------------------------------------------------------------------------------------------------


def test_the_name_of_a_tool_may_be_longer_in_messages_than_in_chat() -> None:
    """Anthropic takes 128 characters, and tools of MCP servers need them; OpenAI takes 64."""
    call = {"type": "tool_use", "id": "1", "name": LONG, "input": {}}
    asked = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "."}]},
    ]
    tools = [{"name": LONG, "input_schema": SCHEMA}, {"name": LONG + "2", "input_schema": SCHEMA}]
    translator = messages(messages=asked, tools=tools, tool_choice={"type": "tool", "name": LONG})
    translator.check()
    chat = translator.fields
    first, second = (tool["function"]["name"] for tool in chat["tools"])
    assert len(first) == len(second) == 64
    assert first != second
    assert chat["messages"][1]["tool_calls"][0]["function"]["name"] == first
    assert chat["tool_choice"]["function"]["name"] == first
    said = part(0, id="2", name=second, arguments="{}")
    assert calls_of(streamed(translator, said)) == [(LONG + "2", "{}")]
    translator.restart()
    assert whole(translator, said)["content"][0]["name"] == LONG + "2"


def test_the_name_of_a_tool_may_be_longer_in_responses_than_in_chat() -> None:
    item = {"type": "function_call", "call_id": "1", "name": LONG, "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "."}
    tools = [{"type": "function", "name": LONG, "parameters": SCHEMA}]
    translator = responses(input=[item, result], tools=tools, tool_choice={"type": "function", "name": LONG})
    chat = translator.fields
    name = chat["tools"][0]["function"]["name"]
    assert len(name) == 64
    assert chat["messages"][0]["tool_calls"][0]["function"]["name"] == name
    assert chat["tool_choice"]["function"]["name"] == name
    assert calls_of(streamed(translator, part(0, id="2", name=name, arguments="{}"))) == [(LONG, "{}")]


def test_a_tool_of_messages_may_have_no_type() -> None:
    translator = messages(tools=[{"type": None, "name": "look", "input_schema": SCHEMA}])
    assert translator.left_out == []
    assert translator.fields["tools"]


@EACH
def test_a_call_whose_name_is_said_with_each_part_is_one_call(make: Callable[..., Any]) -> None:
    """Some servers say the name again, and no id, with each part of the arguments."""
    parts = [part(0, id="1", name="look", arguments='{"a":'), part(0, name="look", arguments="1}")]
    assert calls_of(streamed(make(), *parts)) == [("look", '{"a":1}')]
    parts = [part(0, name="look", arguments='{"a":'), part(0, name="look", arguments="1}")]
    assert calls_of(streamed(make(), *parts)) == [("look", '{"a":1}')]


@EACH
def test_whole_calls_at_one_index_without_ids_are_several_calls(make: Callable[..., Any]) -> None:
    parts = [part(0, id="", name="look", arguments='{"a":1}'), part(0, id="", name="look", arguments='{"a":2}')]
    assert calls_of(streamed(make(), *parts)) == [("look", '{"a":1}'), ("look", '{"a":2}')]


@pytest.mark.parametrize("arguments", ["null", "[1]", "5", '"a"', "", "{"])
def test_the_input_of_a_tool_is_an_object_in_messages(arguments: str) -> None:
    said = part(0, id="1", name="look", arguments=arguments)
    expected = {} if arguments in ("", "null") else {"input": arguments}
    assert whole(messages(), said)["content"][0]["input"] == expected
    [(_, streamed_arguments)] = calls_of(streamed(messages(), said))
    assert streamed_arguments == arguments


# --- Usage ------------------------------------------------------------------------------------------------------------

ODD_USAGES: dict[str, Any] = {
    "texts": {"prompt_tokens": "7", "completion_tokens": "8"},
    "details that are none": {"prompt_tokens": 7, "completion_tokens": 8, "prompt_tokens_details": [1]},
    "odd details": {"prompt_tokens": 7, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": "4"}},
    "floats": {"prompt_tokens": 7.0, "completion_tokens": 8.0},
}


@pytest.mark.parametrize("why", ODD_USAGES)
@EACH
def test_a_usage_that_can_not_be_read_spoils_no_answer(make: Callable[..., Any], why: str) -> None:
    usage = ODD_USAGES[why]
    last = streamed(make(), {"content": "Hi."}, usage=usage)[-1]
    assert last["type"] in ("response.completed", "message_stop")
    told = whole(make(), {"content": "Hi."}, usage=usage)["usage"]
    expected = (0, 0) if why == "texts" else (7, 8)
    assert (told["input_tokens"], told["output_tokens"]) == expected
    assert all(type(value) is not float for value in told.values())


# --- What has no meaning here -----------------------------------------------------------------------------------------


@EACH
def test_several_answers_are_refused(make: Callable[..., Any]) -> None:
    """Both dialects have one: the others would be paid for, and lost."""
    make(n=1).check()
    with pytest.raises(AppError, match="n: ") as refused:
        make(n=2).check()
    assert refused.value.param == "n"


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ({"file_id": "file_1"}, "not stored here"),
        ({"file_url": "https://a.b/c.pdf"}, "send the data itself, as file_data"),
    ],
)
def test_a_file_that_chat_can_not_have_is_refused_by_what_it_is(part: Json, instead: str) -> None:
    asked = responses(input=[{"role": "user", "content": [{"type": "input_file"} | part]}])
    with pytest.raises(AppError, match=instead) as refused:
        asked.check()
    assert refused.value.param == "input.0.content.0"


# --- Answers ----------------------------------------------------------------------------------------------------------


def test_a_broken_answer_keeps_what_was_sent_of_it() -> None:
    translator = responses(tools=[{"type": "function", "name": "f", "parameters": SCHEMA}])
    call = {"index": 0, "id": "call_1", "function": {"name": "f", "arguments": '{"a":'}}
    for delta in ({"reasoning_content": "Hm."}, {"content": "Hel"}, {"tool_calls": [call]}):
        chunk = {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        translator.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    last = translator.failed(AppError(), "id").decode().removesuffix("data: [DONE]\n\n").partition("data: ")[2]
    thought, said, called = json.loads(last)["response"]["output"]
    assert thought["summary"][0]["text"] == "Hm."
    assert (said["content"][0]["text"], said["status"]) == ("Hel", "completed")
    assert (called["arguments"], called["status"]) == ('{"a":', "incomplete")


def test_citations_are_told_as_events_too() -> None:
    found = {
        "type": "url_citation",
        "url_citation": {"url": "https://a.b", "title": "A", "start_index": 0, "end_index": 2},
    }
    events = streamed(responses(), {"content": "Hi."}, {"annotations": [found, "odd"]})
    [event] = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert event["annotation"] == {
        "type": "url_citation",
        "url": "https://a.b",
        "title": "A",
        "start_index": 0,
        "end_index": 2,
    }
    assert (event["output_index"], event["content_index"], event["annotation_index"]) == (0, 0, 0)
    [message] = events[-1]["response"]["output"]
    assert message["content"][0]["annotations"] == [event["annotation"]]


@EACH
def test_reasoning_alone_and_nothing_at_all_are_complete_answers(make: Callable[..., Any]) -> None:
    for deltas in ((), ({"reasoning_content": "Hm."},)):
        events = streamed(make(), *deltas)
        assert events[-1]["type"] in ("response.completed", "message_stop")
