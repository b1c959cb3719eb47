"""What some servers send in place of OpenAI's chunks: chunks with fields missing, or a whole answer."""

from typing import Any

from app.llm.failures import cut_off, unreadable
from app.llm.sse import DONE
from app.llm.stream_state import StreamState


def complete_chunk(chunk: dict[str, Any]) -> bool:
    """Add what OpenAI's clients read in every chunk: choices, and in each a delta; return whether any was missing."""
    if chunk.get("choices") is None:
        chunk["choices"] = []
        return True
    lacking = [choice for choice in chunk["choices"] if choice.get("delta") is None]
    for choice in lacking:
        choice["delta"] = {}
    return bool(lacking)


def stream_of(answer: dict[str, Any], state: StreamState, model: str) -> bytes:
    """Return the events of a stream for a whole answer, which some servers send though a stream was asked for.

    Args:
        answer: OpenAI's `chat.completion`.
        state: told of every chunk.
        model: the model's public name, for errors.

    Raises:
        ProviderError: the answer has no choices, or lacks one.
    """
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage", "content")}
    head["object"] = "chat.completion.chunk"
    try:
        choices = []
        for choice in answer["choices"]:
            delta = dict(choice.get("message") or {})
            if delta.get("tool_calls"):
                delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(delta["tool_calls"])]
            choices.append({**{k: v for k, v in choice.items() if k != "message"}, "delta": delta})
        chunks: list[dict[str, Any]] = [{**head, "choices": choices}]
        if answer.get("usage"):
            chunks.append({**head, "choices": [], "usage": answer["usage"]})
        events = b"".join(map(state.event, chunks))
    except (AttributeError, KeyError, TypeError):
        raise unreadable(model) from None
    if not state.finished:
        raise cut_off(model)
    return events + DONE
