"""The response object of the Responses API: what the request says of it, its usage, its annotations."""

from typing import Any, Literal

from app.dialects.chunks import counts
from app.dialects.tools import Tools
from app.models import Answered


class ResponseObject(Answered):
    """A whole response."""

    id: str
    object: Literal["response"]
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    output: list[dict[str, Any]]


def skeleton(sent: dict[str, Any], tools: Tools) -> dict[str, Any]:
    """Return the response object with all that the request says of it."""
    text, reasoning = sent.get("text") or {}, sent.get("reasoning") or {}
    form = text.get("format") or {"type": "text"}
    if form.get("type") == "json_schema":
        form = {"description": None, "strict": False, **form}
    return {
        "instructions": sent.get("instructions"),
        "tools": tools.echo,
        "tool_choice": sent.get("tool_choice") or "auto",
        "truncation": "disabled",
        "parallel_tool_calls": sent.get("parallel_tool_calls", True),
        "text": {"format": form, "verbosity": text.get("verbosity") or "medium"},
        "top_p": sent.get("top_p", 1.0),
        "presence_penalty": sent.get("presence_penalty", 0.0),
        "frequency_penalty": sent.get("frequency_penalty", 0.0),
        "top_logprobs": sent.get("top_logprobs", 0),
        "temperature": sent.get("temperature", 1.0),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "max_output_tokens": sent.get("max_output_tokens"),
        "max_tool_calls": sent.get("max_tool_calls"),
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": sent.get("metadata") or {},
        "safety_identifier": sent.get("safety_identifier"),
        "prompt_cache_key": sent.get("prompt_cache_key"),
        "user": sent.get("user"),
    }


def annotation(found: dict[str, Any]) -> dict[str, Any]:
    """Return an annotation as Responses have it: the citation's fields beside its type."""
    kind = found.get("type")
    inner = found.get(str(kind))
    if not isinstance(inner, dict):
        return found
    where = {"url": "", "title": "", "start_index": 0, "end_index": 0} if kind == "url_citation" else {}
    return {"type": kind, **where, **inner}


def usage(told: dict[str, Any]) -> dict[str, Any]:
    """Return the usage of a response for chat's. What can't be read counts as zero."""
    asked, answered = counts(told.get("prompt_tokens_details")), counts(told.get("completion_tokens_details"))
    told = counts(told)
    prompt, answer = told.get("prompt_tokens", 0), told.get("completion_tokens", 0)
    written = told.get("cache_creation_input_tokens") or asked.get("cache_write_tokens", 0)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": asked.get("cached_tokens", 0), "cache_write_tokens": written},
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": answered.get("reasoning_tokens", 0)},
        "total_tokens": prompt + answer,
    }
