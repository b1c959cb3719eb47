"""Turns LiteLLM's exceptions into our errors, by what the provider really sent (app/llm/wire.py)."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic_core import from_json

from app.errors import AppError, InvalidRequest, ProviderMisconfigured, ProviderRefused, ProviderTimeout
from app.llm.failures import cut_off, error_in, failure_in_body, parse_body, provider_failure, unreachable, unreadable
from app.llm.targets import Target
from app.llm.wire import Wire

NOTHING_SENT = {"ConnectError", "ClientConnectorError", "ConnectionRefusedError"}
NO_CONNECTION = NOTHING_SENT | {"ServerDisconnectedError"}
CUT_OFF = {
    "ClientPayloadError",
    "RemoteProtocolError",
    "IncompleteRead",
    "ReadError",
    "StopAsyncIteration",  # a stream that ends without a finish reason, if LiteLLM does not invent one
    "TransferEncodingError",
}
NO_ANSWER_IN_TIME = {"ReadTimeout", "SocketTimeoutError", "ServerTimeoutError", "TimeoutError"}
OURS = re.compile("LLM Provider NOT provided|credential|api[_ ]?key|environment variable", re.IGNORECASE)
"""What LiteLLM says when it lacks something of ours."""
NO_CONNECTION_IN_TIME = {"ConnectTimeout", "ConnectionTimeoutError"}


def litellm_failure(target: Target, error: Exception, wire: Wire, sent: Iterable[str] = ()) -> AppError:
    """Return our error for an exception of LiteLLM's.

    Args:
        target: the model that was called.
        error: what LiteLLM raised.
        wire: what the provider sent.
        sent: names of the request's fields; LiteLLM may have refused one of them.
    """
    error = getattr(error, "original_exception", None) or error
    causes = {type(cause).__name__ for cause in _causes(error)}
    if causes & NO_CONNECTION_IN_TIME:
        message = f"The provider of model {target.name!r} did not accept a connection in time (timeouts.connect)."
        return ProviderTimeout(message, retry=True, unreached=True)
    if wire.status is None and (reasons := causes & (NO_CONNECTION | CUT_OFF)) and wire.sent:
        return unreachable(target, min(reasons), unreached=bool(reasons & NOTHING_SENT))
    if wire.status is not None and wire.status >= 400:
        body = parse_body(wire.body) if wire.body else _member(error)
        return provider_failure(target, wire.status, body, wire.headers)
    if causes & NO_ANSWER_IN_TIME:
        return ProviderTimeout(f"Model {target.name!r} did not finish in time (timeouts.total).")
    if not wire.sent:
        return _refused_by_litellm(target, error, sent)
    told = error_in(parse_body(wire.body)) if wire.error is None else wire.error
    if told is not None:
        return failure_in_body(target, told)
    if causes & CUT_OFF and not wire.is_broken:
        return cut_off(target.name)
    # Of an answer that it can't read, LiteLLM says a status of its own: only for Amazon's stream it is the provider's.
    status = getattr(error, "status_code", None)
    if wire.is_binary and isinstance(status, int) and 400 <= status < 600:
        return provider_failure(target, status, _member(error))
    return unreadable(target.name)


def _refused_by_litellm(target: Target, error: Exception, sent: Iterable[str]) -> AppError:
    """Return our error for a request that LiteLLM has not sent: it can't translate it, or lacks something of ours."""
    text = str(error)
    if getattr(error, "status_code", None) in (401, 403) or OURS.search(text):
        return ProviderMisconfigured(
            f"Model {target.name!r} can't be called: LiteLLM lacks credentials, or does not know its provider. "
            "Only the operators of this service can fix that."
        )
    if param := _first_named(sent, text):
        message = f"The provider of model {target.name!r} does not take {param!r} as it is here."
        return InvalidRequest(message, param=param)
    return ProviderRefused(f"This request can't be translated for the provider of model {target.name!r}.")


def _first_named(names: Iterable[str], text: str) -> str | None:
    """Return the parameter that a text names first, written with or without underscores."""
    places = {}
    for name in set(names) - {"model", "messages"}:
        if place := re.search(rf"\b{re.escape(name).replace('_', '[_ ]')}\b", text):
            places[name] = place.start()
    return min(places, key=lambda name: places[name], default=None)


def _causes(error: BaseException | None) -> list[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def _member(error: Exception) -> dict[str, Any] | None:
    """Return the provider's `error` object: from a body in the chain of exceptions, else from JSON in the text."""
    for cause in _causes(error):  # LiteLLM's own exception may have lost the body of its cause
        body = getattr(cause, "body", None)
        if isinstance(body, dict) and body.get("message"):
            return body
    text = str(getattr(error, "message", error))
    start = text.find("{")
    if start < 0:
        return None
    try:
        quoted = from_json(text[start : text.rfind("}") + 1])
    except ValueError:
        return None
    member = quoted.get("error", quoted) if isinstance(quoted, dict) else None
    return member if isinstance(member, dict) else None
