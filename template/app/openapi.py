"""What the OpenAPI page says of endpoints that read and write bytes themselves."""

from typing import Any, Literal

from pydantic import BaseModel

from app.errors import PROBLEM_JSON
from app.models import Problem


def _schema(model: type[BaseModel], mode: Literal["validation", "serialization"] = "serialization") -> Any:
    """Return a model's JSON schema with its definitions put where they are used: it stands inside a larger document."""
    schema = model.model_json_schema(mode=mode)
    definitions = schema.pop("$defs", {})

    def inlined(node: Any) -> Any:
        if isinstance(node, list):
            return [inlined(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inlined(definitions[node["$ref"].rpartition("/")[2]])
        return {key: inlined(value) for key, value in node.items()}

    return inlined(schema)


PROBLEM = {PROBLEM_JSON: {"schema": _schema(Problem)}}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is at fault.", "content": PROBLEM},
    "5XX": {"description": "This service or a provider is at fault.", "content": PROBLEM},
}


def described(request: type[BaseModel], response: type[BaseModel], *, stream: bool = False) -> dict[str, Any]:
    """Return a route's arguments that describe its bodies.

    Args:
        request: the JSON body it reads.
        response: the JSON body it writes.
        stream: whether it may answer with server-sent events too.
    """
    content: dict[str, Any] = {"application/json": {"schema": _schema(response)}}
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    body = {"required": True, "content": {"application/json": {"schema": _schema(request, "validation")}}}
    return {
        "response_model": None,
        "responses": {200: {"description": "The answer.", "content": content}, **ERRORS},
        "openapi_extra": {"requestBody": body},
    }
