"""Renders every error as problem details (RFC 9457), whatever raised it."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from app.dialects.message_events import error_type
from app.errors import PROBLEM_JSON, AppError, InvalidJSON, invalid_request, phrase, problem

CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "rate_limit_exceeded",
    431: "request_too_large",
}
TEXTS = {
    "Not Found": "There is nothing at this address.",
    "Method Not Allowed": "This address does not take this method.",
}


def problem_response(error: AppError | HTTPException, scope: Scope | None, request_id: str = "none") -> Response:
    """Return the response for an error: problem details with OpenAI's error in it; on /v1/messages, it is Anthropic's.

    Args:
        error: one of ours, or an HTTPException of FastAPI, Starlette or an endpoint; its detail is shown if it is
            text.
        scope: the request's ASGI scope, for its id; None outside a request.
        request_id: the id of what is no request that the application has met.
    """
    exchange = scope.get("app.exchange") if scope else None
    if isinstance(error, AppError):
        status, code, message, param = error.status, error.code, error.message, error.param
        headers = error.headers
    else:
        status, param, headers = error.status_code, None, dict(error.headers or {})
        code = CODES.get(status, phrase(status).lower().replace(" ", "_"))
        message = error.detail if isinstance(error.detail, str) else phrase(status)
        message = TEXTS.get(message, message)
    if exchange:
        exchange.error = code
    request_id = exchange.request_id if exchange else request_id
    body = problem(status, code, message, param, request_id=request_id).model_dump()
    if scope and scope["path"].startswith("/v1/messages"):
        body |= {"type": "error", "request_id": request_id}
        body["error"]["type"] = error_type(status)
    return Response(to_json(body), status, headers, PROBLEM_JSON)


def _leaves(group: ExceptionGroup[Any]) -> Iterator[Any]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def install_problem_handlers(app: FastAPI) -> None:
    """Make an application's errors problem details."""

    async def on_error(request: Request, error: Any) -> Response:
        return problem_response(error, request.scope)

    async def on_invalid(request: Request, error: Any) -> Response:
        errors = error.errors()
        if any(found["type"] == "json_invalid" for found in errors):
            return problem_response(InvalidJSON("The body is not valid JSON."), request.scope)
        return problem_response(invalid_request(errors), request.scope)

    async def on_group(request: Request, group: Any) -> Response:
        """Calls in an asyncio.TaskGroup fail with a group of errors: the first one is the answer."""
        errors = list(_leaves(group))
        if not all(isinstance(error, AppError | HTTPException) for error in errors):
            raise group
        return problem_response(errors[0], request.scope)

    app.add_exception_handler(AppError, on_error)
    app.add_exception_handler(ExceptionGroup, on_group)
    app.add_exception_handler(HTTPException, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
