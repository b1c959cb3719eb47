"""What programs do with clients of Responses and Messages. Prints the name of each step that went well.

Usage: python dialects.py BASE_URL KEY

The model `agent` calls the tool `weather` for Zürich when it is offered, and says `Sunny.` when it has the result.
"""

# mypy: ignore-errors
# Its libraries are in an environment of their own.

import asyncio
import json
import os
import sys
from typing import Any

import anthropic
import openai
from pydantic import BaseModel

SAID = {
    "demo": "You said: Hello",
    "stub": "Hello from the stub. Grüße, 世界! 👋",
    "anthropic": "Hello from the stub. Grüße, 世界! 👋",
}
"""What each model that is well answers."""
URL, KEY = sys.argv[1:]
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


class Place(BaseModel):
    """What a model fills in."""

    city: str
    inhabitants: int


def responses(client: openai.OpenAI) -> None:
    for model, text in SAID.items():
        answer = client.responses.create(model=model, input="Hello")
        assert (answer.output_text, answer.status) == (text, "completed")
        assert answer.usage
        assert answer.usage.output_tokens > 0
        with client.responses.stream(model=model, input="Hello") as events:
            deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
            final = events.get_final_response()
        assert "".join(deltas) == final.output_text == text
    assert isinstance(client.responses.parse(model="demo", input="Hello", text_format=Place).output_parsed, Place)
    with client.responses.stream(model="demo", input="Hello", text_format=Place) as events:
        assert isinstance(events.get_final_response().output_parsed, Place)


def responses_tools(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}]
    asked: Any = [{"role": "user", "content": "Hello"}]
    with client.responses.stream(model="agent", input=asked, tools=tools) as events:
        first = events.get_final_response()
    [call] = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Zürich"}
    asked += [call.model_dump(exclude_none=True, exclude={"parsed_arguments"})]
    asked += [{"type": "function_call_output", "call_id": call.call_id, "output": "21 °C"}]
    assert client.responses.create(model="agent", input=asked, tools=tools).output_text == "Sunny."


def responses_errors(client: openai.OpenAI) -> None:
    once = client.with_options(max_retries=0)

    def ask():
        once.responses.create(model="demo", input="Hello", previous_response_id="resp_1")

    assert "store" in caught(openai.BadRequestError, ask).message
    *_, last = once.responses.create(model="cut", input="Hello", stream=True)
    assert last.type == "response.failed"
    assert last.response.error
    assert "cut off" in last.response.error.message


def messages(client: anthropic.Anthropic) -> None:
    hello: Any = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100}
    for model, text in SAID.items():
        answer: Any = client.messages.create(model=model, **hello)
        assert (answer.content[0].text, answer.stop_reason) == (text, "end_turn")
        assert answer.usage.output_tokens > 0
        assert answer._request_id  # noqa: SLF001 - its documented name
        with client.messages.stream(model=model, **hello) as events:
            deltas = list(events.text_stream)
            final: Any = events.get_final_message()
        assert "".join(deltas) == final.content[0].text == text
        assert final.usage.input_tokens > 0
        del hello["max_tokens"]
        assert client.messages.count_tokens(model=model, **hello).input_tokens > 0
        hello["max_tokens"] = 100
    assert isinstance(client.messages.parse(model="demo", output_format=Place, **hello).parsed_output, Place)
    assert "demo" in {model.id for model in client.models.list()}


def messages_tools(client: anthropic.Anthropic) -> None:
    tools: Any = [{"name": "weather", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}]
    asked: Any = [{"role": "user", "content": "Hello"}]
    with client.messages.stream(model="agent", max_tokens=100, messages=asked, tools=tools) as events:
        first = events.get_final_message()
    [call] = first.content
    assert call.type == "tool_use"
    assert (call.input, first.stop_reason) == ({"city": "Zürich"}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "21 °C"}]}
    asked += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second: Any = client.messages.create(model="agent", max_tokens=100, messages=asked, tools=tools)
    assert second.content[0].text == "Sunny."


def messages_errors(client: anthropic.Anthropic) -> None:
    once = client.with_options(max_retries=0)
    hello: Any = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100}
    for kind, model in {
        anthropic.NotFoundError: "none",
        anthropic.BadRequestError: "refusing",
        anthropic.RateLimitError: "busy-for-long",
        anthropic.InternalServerError: "broken",
    }.items():
        error = caught(kind, lambda model=model: once.messages.create(model=model, **hello))
        assert error.body["type"] == "error"
        assert error.body["error"]["type"] == error.type
        assert error.body["request_id"] == error.request_id
    cut = caught(anthropic.APIStatusError, lambda: list(once.messages.create(model="cut", stream=True, **hello)))
    assert "cut off" in str(cut.body)


def caught(kind, call):
    """Return the error that a call raises, which must be of this kind."""
    found = None
    try:
        call()
    except kind as error:
        found = error
    assert found is not None, f"no {kind.__name__}"
    return found


def openai_agents(_: object) -> None:
    from agents import Agent, Runner, function_tool, set_tracing_disabled

    set_tracing_disabled(disabled=True)

    @function_tool
    def weather(city: str) -> str:
        """Tell the weather."""
        return f"21 °C in {city}"

    agent = Agent(name="a", instructions="Be nice.", model="agent", tools=[weather])

    async def ask() -> None:
        assert (await Runner.run(agent, "Hello")).final_output == "Sunny."
        result = Runner.run_streamed(agent, "Hello")
        async for _ in result.stream_events():
            pass
        assert result.final_output == "Sunny."

    asyncio.run(ask())


def pydantic_ai(_: object) -> None:
    from pydantic_ai import Agent

    async def ask(model: str) -> None:
        agent = Agent(model, instructions="Be nice.")

        @agent.tool_plain
        def weather(city: str) -> str:
            """Tell the weather."""
            return f"21 °C in {city}"

        assert (await agent.run("Hello")).output == "Sunny."
        async with agent.run_stream("Hello") as result:
            assert await result.get_output() == "Sunny."

    async def ask_both() -> None:
        for model in ("openai:agent", "anthropic:agent"):
            await ask(model)

    asyncio.run(ask_both())


def langchain(_: object) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def weather(city: str) -> str:
        """Tell the weather."""
        return f"21 °C in {city}"

    model = ChatOpenAI(model="agent", use_responses_api=True).bind_tools([weather])
    said: Any = [HumanMessage("Hello")]
    chunks = list(model.stream(said))
    first = chunks[0]
    for chunk in chunks[1:]:
        first = first + chunk
    [call] = first.tool_calls
    said += [first, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
    assert "".join(str(chunk.text) for chunk in model.stream(said)) == "Sunny."
    assert str(model.invoke(said).text) == "Sunny."


STEPS = {
    openai.OpenAI(base_url=URL, api_key=KEY): (responses, responses_tools, responses_errors),
    anthropic.Anthropic(base_url=URL.removesuffix("/v1"), api_key=KEY): (messages, messages_tools, messages_errors),
    None: (openai_agents, pydantic_ai, langchain),
}

if __name__ == "__main__":
    os.environ |= {"OPENAI_BASE_URL": URL, "OPENAI_API_KEY": KEY}
    os.environ |= {"ANTHROPIC_BASE_URL": URL.removesuffix("/v1"), "ANTHROPIC_API_KEY": KEY}
    for client, steps in STEPS.items():
        for step in steps:
            step(client)
            sys.stdout.write(f"{step.__name__}\n")
