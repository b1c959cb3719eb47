"""Answers as Pydantic objects: by the provider's own schema mode, else by a forced tool, with one repair."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from app.errors import MOST_ERRORS, InvalidRequest, ProviderError, ProviderRefused
from app.llm.call import Answer
from app.llm.failures import unreadable
from app.models import Message

M = TypeVar("M", bound=BaseModel)
Ask = Callable[..., Awaitable[Answer]]

log = structlog.get_logger("app.llm")


async def parse(ask: Ask, kind: type[M], messages: Sequence[Message | dict[str, Any]]) -> M:
    """Return an answer as an object of `kind`.

    Args:
        ask: takes `messages` and further fields of a request, and returns the model's answer.
        kind: the class of the object.
        messages: the conversation.

    Raises:
        ProviderError: the model's text does not fit `kind`, after one repair.
        AppError: what `ask` raises.
    """
    name = re.sub(r"\W", "_", kind.__name__)[:64]
    schema = _strict(kind.model_json_schema())
    mode: dict[str, Any] = {
        "response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
    }
    try:
        answer = await ask(messages=list(messages), **mode)
    except (InvalidRequest, ProviderRefused) as refusal:
        if not _is_about(refusal, "response_format", "json_schema"):
            raise
        mode = {
            "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}],
            "tool_choice": {"type": "function", "function": {"name": name}},
        }
        answer = await ask(messages=list(messages), **mode)
    text = _json_of(answer)
    try:
        result = kind.model_validate_json(text)
        repaired = False
    except ValidationError as error:
        repaired = True
        answer = await ask(messages=[*messages, *_repair(text, error)], **mode)
        try:
            result = kind.model_validate_json(_json_of(answer))
        except ValidationError:
            model = answer.call.answered_by.name
            raise ProviderError(f"Model {model!r} gave no answer that fits {name}.") from None
    by = "tool" if "tools" in mode else "schema"
    log.info("parsed", kind=name, model=answer.call.answered_by.name, mode=by, repaired=repaired)
    return result


def _repair(text: str, error: ValidationError) -> list[dict[str, Any]]:
    """Return the messages that show a model its answer and what is wrong with it."""
    few = error.error_count() <= MOST_ERRORS  # each takes a kilobyte
    faults = (
        "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}"
            for fault in (error.errors(include_url=False, include_input=False) if few else ())
        )
        or "nothing in it does"
    )
    request = f"That does not fit the schema ({faults}). Answer again, with JSON that does and nothing else."
    return [{"role": "assistant", "content": text}, {"role": "user", "content": request}]


def _json_of(answer: Answer) -> str:
    """Return an answer's JSON: its tool call's arguments, else its text.

    Raises:
        ProviderError: it has neither where OpenAI's protocol puts them.
    """
    message = answer.body["choices"][0]["message"]
    try:
        if message.get("tool_calls"):
            return str(message["tool_calls"][0]["function"]["arguments"])
        return str(message.get("content") or "")
    except (LookupError, TypeError):
        raise unreadable(answer.call.answered_by.name) from None


def _is_about(refusal: InvalidRequest | ProviderRefused, *names: str) -> bool:
    return any(name in (refusal.param or "") or name in refusal.message for name in names)


def _strict(schema: Any) -> Any:
    """Return a JSON schema as OpenAI's strict mode wants it: every property required, none additional, no defaults."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items() if key != "default"}
    if isinstance(schema.get("properties"), dict):
        strict |= {
            "properties": {name: _strict(value) for name, value in schema["properties"].items()},
            "required": list(schema["properties"]),
            "additionalProperties": False,
        }
    return strict
