"""What the OpenAPI page says about keys, about errors, and about endpoints that read and write bytes themselves."""

from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel

from app.http.problems import PROBLEM_JSON
from app.models import Problem


def _schema(model: type[BaseModel], mode: Literal["validation", "serialization"] = "serialization") -> Any:
    """Return a model's JSON schema with its definitions inlined, since it becomes part of a larger document."""
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
    status: {"description": HTTPStatus(status).phrase, "content": PROBLEM}
    for status in (400, 401, 403, 404, 413, 415, 422, 429, 431, 500, 502, 503, 504)
}
NO_KEY: dict[str, Any] = {"security": []}
"""`openapi_extra` of routes that need no key."""


def described(request: type[BaseModel], response: type[BaseModel], *, stream: bool = False) -> dict[str, Any]:
    """Return a route's arguments that describe its bodies.

    Args:
        request: the JSON body it reads.
        response: the JSON body it writes.
        stream: whether it may answer with server-sent events too.
    """
    content: dict[str, Any] = {"application/json": {"schema": _schema(response)}}
    if stream:
        event = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
        content["text/event-stream"] = {"itemSchema": event}
    body = {"required": True, "content": {"application/json": {"schema": _schema(request, "validation")}}}
    return {
        "response_model": None,
        "responses": {200: {"description": "The answer.", "content": content}, **ERRORS},
        "openapi_extra": {"requestBody": body},
    }
