"""What openai-agents does in its stateful modes. Prints the name of each step that went well.

Usage: python state.py BASE_URL KEY
"""

# mypy: ignore-errors

import asyncio
import sys
from typing import Any

from agents import (
    Agent,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

CITY = "Zürich"


@function_tool
def weather(city: str) -> str:
    """Return the weather."""
    assert city == CITY
    return f"Sun in {city}"


def done(step: str) -> None:
    """Tell that a step went well."""
    sys.stdout.write(f"{step}\n")


async def session(base_url: str, key: str) -> None:
    """Play each step."""
    set_tracing_disabled(disabled=True)
    client = AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0)
    agent = Agent(name="a", instructions="Help.", model=OpenAIResponsesModel("agent", client), tools=[weather])
    for streamed in (False, True):

        async def ask(text: str, *, streamed: bool = streamed, **more: Any) -> Any:
            if not streamed:
                return await Runner.run(agent, text, **more)
            result = Runner.run_streamed(agent, text, **more)
            async for _ in result.stream_events():
                pass
            return result

        first = await ask("Weather?")
        assert first.final_output == "turn 1: Sunny.", first.final_output
        second = await ask("And now?", previous_response_id=first.last_response_id)
        assert second.final_output == "turn 2: Sunny.", second.final_output
        done("previous_response_id")
        conversation = await client.conversations.create()
        for turn in (1, 2, 3):
            result = await ask("Weather?", conversation_id=conversation.id)
            assert result.final_output == f"turn {turn}: Sunny.", result.final_output
        done("conversation_id")
        memory = OpenAIConversationsSession(openai_client=client)
        for turn in (1, 2):
            result = await ask("Weather?", session=memory)
            assert result.final_output == f"turn {turn}: Sunny.", result.final_output
        assert len(await memory.get_items()) == 8  # a question, a call, its result and an answer, twice
        await memory.clear_session()
        done("session")


asyncio.run(session(*sys.argv[1:]))
