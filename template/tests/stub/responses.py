"""OpenAI's Responses API: https://platform.openai.com/docs/api-reference/responses."""

from collections.abc import Iterator
from typing import Any

from tests.stub.behaviour import MODEL_SUFFIX, PROMPT_TOKENS, Behaviour, Event, Json, dump, halves


def error_event(message: str) -> Event:
    error = {"code": "server_error", "message": message}
    body = {"id": "resp_stub", "object": "response", "status": "failed", "error": error, "output": []}
    return "response.failed", dump({"type": "response.failed", "sequence_number": 99, "response": body})


def response(request: Json, behaviour: Behaviour) -> Json:
    """Answer `POST /v1/responses`."""
    text = {"type": "output_text", "text": behaviour.said, "annotations": [], "logprobs": []}
    message = {"type": "message", "id": "msg_stub", "role": "assistant", "content": [text]}
    calls: list[Json] = [
        {"type": "function_call", "id": f"fc_{index}", "call_id": f"call_{index}", "name": name, "arguments": arguments}
        for index, (name, arguments) in enumerate(behaviour.tool_calls)
    ]
    tokens = behaviour.completion_tokens
    usage = {
        "input_tokens": PROMPT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": PROMPT_TOKENS + tokens,
    }
    return {
        "id": "resp_stub",
        "object": "response",
        "created_at": 1767225600,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": request["model"] + MODEL_SUFFIX,
        "output": [item | {"status": "completed"} for item in calls or [message]],
        "usage": usage if behaviour.usage else None,
    }


def events(request: Json, behaviour: Behaviour) -> Iterator[Event]:
    """Answer `POST /v1/responses` with `stream`."""
    whole = response(request, behaviour)
    number = iter(range(1_000_000_000))

    def event(kind: str, **rest: Any) -> Event:
        return kind, dump({"type": kind, "sequence_number": next(number)} | rest)

    begun = whole | {"output": [], "status": "in_progress", "usage": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, item in enumerate(whole["output"]):
        where = {"item_id": item["id"], "output_index": index}
        empty: Json = {"content": []} if item["type"] == "message" else {"arguments": ""}
        yield event("response.output_item.added", output_index=index, item=item | {"status": "in_progress"} | empty)
        if item["type"] == "message":
            part = item["content"][0]
            where["content_index"] = 0
            yield event("response.content_part.added", **where, part=part | {"text": ""})
            for word in behaviour.words():
                yield event("response.output_text.delta", **where, delta=word, logprobs=[])
            yield event("response.output_text.done", **where, text=behaviour.said, logprobs=[])
            yield event("response.content_part.done", **where, part=part)
        else:
            for half in halves(item["arguments"]):
                yield event("response.function_call_arguments.delta", **where, delta=half)
            yield event("response.function_call_arguments.done", **where, arguments=item["arguments"])
        yield event("response.output_item.done", output_index=index, item=item)
    if behaviour.finished != 0:
        yield event("response.completed", response=whole)
