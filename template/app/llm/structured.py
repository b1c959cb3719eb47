"""Answers as Pydantic objects: by the provider's own schema mode, else by a forced tool, with repairs and fallbacks."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from app.errors import InvalidRequest, ProviderRefused, UnfitAnswer
from app.llm.call import Answer, CallTotals
from app.llm.failures import unreadable
from app.llm.tools import faults_in
from app.models import Usage

M = TypeVar("M", bound=BaseModel)
Ask = Callable[..., Awaitable[Answer]]

log = structlog.get_logger("app.llm")


@dataclass(frozen=True, slots=True)
class Parsed(Generic[M]):
    """A validated answer.

    Attributes:
        value: the object.
        model: public name of the model that gave it.
        repairs: how often that model was shown what was wrong.
        usage: the sum of all calls that were made for it.
    """

    value: M
    model: str
    repairs: int
    usage: Usage


async def parse(ask: Ask, kind: type[M], messages: Sequence[Any], models: Sequence[str], repairs: int) -> Parsed[M]:
    """Return an answer as an object of `kind`, by the first model whose answer fits.

    Args:
        ask: takes `model`, `messages` and further fields of a request, and returns the model's answer.
        kind: the class of the object.
        messages: the conversation.
        models: public names of the model and of its fallbacks, in order.
        repairs: how often each model is shown what is wrong with its answer.

    Raises:
        UnfitAnswer: no model's answer fits `kind`.
        AppError: what `ask` raises.
    """
    used = CallTotals()
    unfit: UnfitAnswer | None = None
    for model in models:
        if unfit and model in used.tried:
            continue  # it was tried already, as a fallback within a call
        try:
            value, answered, repaired = await _by_one_model(partial(ask, model=model), kind, messages, repairs, used)
        except UnfitAnswer as error:
            unfit = error
            continue
        tokens = (used.prompt_tokens, used.completion_tokens)
        usage = Usage(prompt_tokens=tokens[0], completion_tokens=tokens[1], total_tokens=sum(tokens))
        return Parsed(value, answered, repaired, usage)
    raise unfit or AssertionError("there is always one model")


async def _by_one_model(
    ask: Ask, kind: type[M], messages: Sequence[Any], repairs: int, used: CallTotals
) -> tuple[M, str, int]:
    """Return a model's answer as an object, the model that really answered, and how often it was repaired."""
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
    for repaired in range(repairs + 1):
        used.add(answer.call)
        model, text = answer.call.answered_by.name, _json_of(answer)
        try:
            value = kind.model_validate_json(text)
        except ValidationError as error:
            if repaired < repairs:
                answer = await ask(messages=[*messages, *_repair(text, error)], **mode)
            continue
        by = "tool" if "tools" in mode else "schema"
        log.info("parsed", kind=name, model=model, mode=by, repaired=repaired)
        return value, model, repaired
    raise UnfitAnswer(f"Model {model!r} gave no answer that fits {name}.")


def _repair(text: str, error: ValidationError) -> list[dict[str, Any]]:
    """Return the messages that show a model its answer and what is wrong with it."""
    request = f"That does not fit the schema ({faults_in(error)}). Answer again, with JSON that does and nothing else."
    return [{"role": "assistant", "content": text}, {"role": "user", "content": request}]


def _json_of(answer: Answer) -> str:
    """Return an answer's JSON: its tool call's arguments, else its text.

    Raises:
        ProviderError: a call has no arguments where OpenAI's protocol puts them.
    """
    message = answer.body["choices"][0].get("message") or {}
    if not message.get("tool_calls"):
        return str(answer.body["content"] or "")
    try:
        return str(message["tool_calls"][0]["function"]["arguments"])
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
