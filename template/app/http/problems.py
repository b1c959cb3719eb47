"""Renders every error as problem details (RFC 9457), whatever raised it."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json, to_jsonable_python
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.dialects.message_events import error_type, is_anthropics
from app.errors import AppError, InvalidJSON, invalid_request
from app.llm.sse import DONE
from app.models import ErrorMember, Problem
from app.telemetry.logs import exception_fields

PROBLEM_JSON = "application/problem+json"
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


log = structlog.get_logger("app.errors")


class HTTPFailure(AppError):
    """An HTTPException as one of our errors: its status, its words, and a code by its status or by its detail.

    Args:
        error: of FastAPI, of Starlette, or raised by an endpoint. A detail that is no text is kept in `details`; its
            `message` and `code`, if they are texts, are the error's.
    """

    def __init__(self, error: HTTPException) -> None:
        self.status = error.status_code
        detail: Any = error.detail
        told = {k: v for k, v in detail.items() if isinstance(v, str)} if isinstance(detail, dict) else {}
        message = detail if isinstance(detail, str) else told.get("message", _phrase(self.status))
        code = told.get("code") or CODES.get(self.status, _phrase(self.status).lower().replace(" ", "_"))
        super().__init__(TEXTS.get(message, message), code=code, headers=dict(error.headers or {}))
        self.details = None if isinstance(detail, str) else to_jsonable_python(detail, fallback=str)


def problem_response(error: AppError | HTTPException, scope: Mapping[str, Any], request_id: str = "none") -> Response:
    """Return the response for an error: problem details with OpenAI's error in it; on /v1/messages, it is Anthropic's.

    Args:
        error: one of ours, or an HTTPException of FastAPI, Starlette or an endpoint.
        scope: the request's ASGI scope, or as much of it as is known.
        request_id: the id of what is no request that the application has met.
    """
    exchange = scope.get("app.exchange")
    error = HTTPFailure(error) if isinstance(error, HTTPException) else error
    if exchange:
        exchange.error = error.code
        request_id = exchange.request_id
    body = _problem(error, request_id).model_dump()
    if isinstance(error, HTTPFailure) and error.details is not None:
        body["details"] = error.details
    if is_anthropics(scope):
        body |= {"type": "error", "request_id": request_id}
        body["error"]["type"] = error_type(error.status)
    return Response(to_json(body), error.status, error.headers, PROBLEM_JSON)


def error_event(error: AppError, request_id: str) -> bytes:
    """Return the server-sent event that ends a stream which has already begun, and the `[DONE]` after it."""
    return b"data: " + _problem(error, request_id).model_dump_json().encode() + b"\n\n" + DONE


def _problem(error: AppError, request_id: str) -> Problem:
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return Problem(
        type="about:blank",
        title=_phrase(error.status),
        status=error.status,
        detail=error.message,
        instance=f"urn:request:{request_id}",
        error=ErrorMember(message=error.message, type=kind, param=error.param, code=error.code),
    )


def _phrase(status: int) -> str:
    """Return a status's name; for one that no standard names, that of its class."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "Server Error"


def cause_of(error: BaseException) -> BaseException:
    """Return the exception that is behind another one.

    Of a group, as asyncio.TaskGroup raises it, that is the first unexpected one, or the first. Starlette raises a
    RuntimeError for an error that its handlers can't answer any more.
    """
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, AppError | HTTPException | ExceptionGroup):
        return cause_of(error.__cause__)
    if isinstance(error, ExceptionGroup):
        causes = [cause_of(inner) for inner in error.exceptions]
        return next((cause for cause in causes if not isinstance(cause, AppError | HTTPException)), causes[0])
    return error


def as_app_error(error: BaseException) -> AppError | None:
    """Return what a caller is told of an exception; None if it is unexpected."""
    error = cause_of(error)
    if isinstance(error, HTTPException):
        return HTTPFailure(error)
    return error if isinstance(error, AppError) else None


def told_error(error: BaseException, request_id: str) -> AppError:
    """Return the error that a caller is told of. An unexpected one is logged, and told as `internal_error`."""
    known = as_app_error(error)
    if known is None:
        log.error("unexpected", request_id=request_id, **exception_fields(cause_of(error), error))
    return known or AppError()


def install_problem_handlers(app: FastAPI) -> None:
    """Make an application's errors problem details."""

    async def on_error(request: Request, error: Any) -> Response:
        """Calls in an asyncio.TaskGroup fail with a group of errors: the first one is the answer."""
        failure = as_app_error(error)
        if failure is None:
            raise error
        return problem_response(failure, request.scope)

    async def on_invalid(request: Request, error: Any) -> Response:
        errors = error.errors()
        if any(found["type"] == "json_invalid" for found in errors):
            return problem_response(InvalidJSON("The body is not valid JSON."), request.scope)
        return problem_response(invalid_request(errors), request.scope)

    for kind in (AppError, ExceptionGroup, HTTPException):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
