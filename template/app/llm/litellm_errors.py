"""Turns LiteLLM's exceptions into our errors. Their statuses need correction, and their messages may quote a key."""

import re
from collections.abc import Iterable
from typing import Any

from multidict import CIMultiDict
from pydantic_core import from_json

from app.errors import AppError, InvalidRequest, ProviderError, ProviderTimeout
from app.llm.failures import cut_off, provider_failure, unreachable
from app.llm.targets import Target

NO_CONNECTION = {"ConnectError", "ClientConnectorError", "ConnectionRefusedError", "ServerDisconnectedError"}
CUT_OFF = {
    "ClientPayloadError",
    "RemoteProtocolError",
    "IncompleteRead",
    "ReadError",
    "StopAsyncIteration",  # a stream that ends without a finish reason, if LiteLLM does not invent one
    "TransferEncodingError",
}
NO_ANSWER_IN_TIME = {"ReadTimeout", "SocketTimeoutError", "ServerTimeoutError", "TimeoutError"}
TRANSLATION_ERRORS = {
    "APIConnectionError",
    "AttributeError",
    "Exception",
    "IndexError",
    "KeyError",
    "TypeError",
    "ValueError",
}
"""LiteLLM's own bugs in translating a request or an answer, which it reports as connection errors."""
NO_CONNECTION_IN_TIME = {"ConnectTimeout", "ConnectionTimeoutError"}


def litellm_failure(target: Target, error: Exception, sent: Iterable[str] = ()) -> AppError:
    """Return our error for an exception of LiteLLM's.

    Args:
        target: the model that was called.
        error: what LiteLLM raised. Its text is used only where a provider refuses the request.
        sent: names of the request's fields; LiteLLM may have refused one of them.
    """
    error = getattr(error, "original_exception", None) or error
    causes = {type(cause).__name__ for cause in _causes(error)}
    if causes & NO_CONNECTION_IN_TIME:
        message = f"The provider of model {target.name!r} did not accept a connection in time (timeouts.connect)."
        return ProviderTimeout(message, retry=True)
    if reasons := causes & NO_CONNECTION:
        return unreachable(target, min(reasons))
    if causes & CUT_OFF:
        return cut_off(target.name)
    if causes & NO_ANSWER_IN_TIME:
        return ProviderTimeout(f"Model {target.name!r} did not finish in time (timeouts.total).")
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or not 400 <= status < 600:
        status = 500
    if status == 500 and causes <= TRANSLATION_ERRORS:
        return ProviderError(f"The request to model {target.name!r}, or its answer, could not be translated.")
    if type(error).__name__ == "BudgetExceededError":
        status = 429
    headers = getattr(error, "litellm_response_headers", None) or {}
    member = _member(error)
    if status == 400 and not headers and member is None and (param := _first_named(sent, str(error))):
        # LiteLLM itself refused it, before anything was sent
        text = f"The provider of model {target.name!r} does not take {param!r} as it is here."
        return InvalidRequest(text, param=param)
    return provider_failure(target.name, status, member, CIMultiDict(headers), [target.key])


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
    member = quoted.get("error") if isinstance(quoted, dict) else None
    return member if isinstance(member, dict) else None
