"""Answers as Pydantic objects: by the provider's own schema mode, else by a forced tool, with one repair."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from app.errors import InvalidRequest, ProviderError, ProviderRefused
from app.models import ChatResponse, Message

if TYPE_CHECKING:
    from app.llm.client import LLMClient

M = TypeVar("M", bound=BaseModel)


async def parse(
    llm: "LLMClient", kind: type[M], messages: Sequence[Message | dict[str, Any]], model: str | None, **fields: Any
) -> M:
    """Return an answer as an object of `kind`; see `LLMClient.parse`."""
    name = re.sub(r"\W", "_", kind.__name__)[:64]
    schema = _strict(kind.model_json_schema())
    log = structlog.get_logger("app.llm")
    by_schema: dict[str, Any] = {
        "response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
    }
    by_tool: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": name}},
    }
    mode, how = "schema", by_schema
    try:
        answer = await llm.complete(messages=messages, model=model, **fields, **how)
    except (InvalidRequest, ProviderRefused) as refusal:
        if not _is_about(refusal, "response_format", "json_schema"):
            raise
        mode, how = "tool", by_tool
        answer = await llm.complete(messages=messages, model=model, **fields, **how)
    said = _said(answer)
    try:
        result = kind.model_validate_json(said)
    except ValidationError as unfit:
        mode += ", repaired"
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}"
            for fault in unfit.errors(include_url=False, include_input=False)
        )
        repair = f"That does not fit the schema ({faults}). Answer again, with JSON that does and nothing else."
        retold: list[Message | dict[str, Any]] = [
            *messages,
            {"role": "assistant", "content": said},
            {"role": "user", "content": repair},
        ]
        answer = await llm.complete(messages=retold, model=model, **fields, **how)
        try:
            result = kind.model_validate_json(_said(answer))
        except ValidationError:
            raise ProviderError(f"Model {llm.record.model!r} gave no answer that fits {name}.") from None
    log.info("parsed", kind=name, model=llm.record.model, mode=mode)
    return result


def _said(answer: ChatResponse) -> str:
    """Return an answer's JSON: its tool call's arguments, else its text."""
    message = answer.choices[0].message
    if message.tool_calls:
        return str(message.tool_calls[0]["function"]["arguments"])
    return message.content or ""


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
