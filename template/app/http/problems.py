"""Renders every error as problem details (RFC 9457), whatever raised it."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from app.errors import PROBLEM_JSON, AppError, InvalidJSON, invalid_request, problem

CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "model_not_allowed",
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


def problem_response(error: AppError | HTTPException, scope: Scope | None) -> Response:
    """Return the response for an error.

    Args:
        error: one of ours, or an HTTPException of FastAPI, Starlette or an endpoint; its detail is shown if it is
            text.
        scope: the request's ASGI scope, for its id; None outside a request.
    """
    exchange = scope.get("app.exchange") if scope else None
    if isinstance(error, AppError):
        status, code, message, param = error.status, error.code, error.message, error.param
        headers = error.headers
    else:
        status, param, headers = error.status_code, None, dict(error.headers or {})
        code = CODES.get(status, HTTPStatus(status).phrase.lower().replace(" ", "_"))
        message = error.detail if isinstance(error.detail, str) else HTTPStatus(status).phrase
        message = TEXTS.get(message, message)
    if exchange:
        exchange.error = code
    body = problem(status, code, message, param, request_id=exchange.request_id if exchange else "none")
    return Response(body.model_dump_json(), status, headers, PROBLEM_JSON)


def install_problem_handlers(app: FastAPI) -> None:
    """Make an application's errors problem details."""

    async def on_error(request: Request, error: Any) -> Response:
        return problem_response(error, request.scope)

    async def on_invalid(request: Request, error: Any) -> Response:
        errors = error.errors()
        if any(found["type"] == "json_invalid" for found in errors):
            return problem_response(InvalidJSON("The body is not valid JSON."), request.scope)
        return problem_response(invalid_request(errors), request.scope)

    app.add_exception_handler(AppError, on_error)
    app.add_exception_handler(HTTPException, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
