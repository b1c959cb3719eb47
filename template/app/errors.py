"""Every error that a caller can meet. `http/problems.py` makes responses and events of them.

AppError                    500 internal_error
├── InvalidJSON             400 invalid_json
├── InvalidRequest          422 invalid_request
│   └── UnsupportedParameter    400 unsupported_parameter
├── Unauthorized            401 invalid_api_key
├── ModelNotAllowed         403 model_not_allowed
├── ModelNotFound           404 model_not_found
├── UnknownEndpoint         404 unknown_endpoint
├── RateLimited             429 rate_limit_exceeded
│   └── BudgetExceeded          429 budget_exceeded
├── BudgetUnavailable       503 budget_unavailable
├── ModelNotPriced          503 model_not_priced
├── Overloaded              503 overloaded
├── AuthUnavailable         503 auth_unavailable
├── Draining                503 draining
└── ProviderError           502 provider_error
    ├── OwnModelFailed          500 own_model_failed
    ├── UnfitAnswer             502 unfit_answer
    ├── ProviderNotConfigured   503 provider_not_configured
    ├── ProviderMisconfigured   502 provider_misconfigured
    ├── ProviderRefused         400 the provider's own code
    ├── ProviderRateLimited     429 provider_rate_limited
    └── ProviderTimeout         504 provider_timeout

The texts are ours. A provider's own text reaches a caller in ProviderRefused alone, with secrets removed. OwnCallError
is no AppError: it is for whoever wrote the code, and its caller gets a 500.
"""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import ValidationError

MOST_ERRORS = 100
INTERNAL_ERROR = "Something went wrong here. Search the logs for the request id."


class AppError(Exception):
    """An error with a status, a code and a sentence for the person who gets it.

    Args:
        message: one or two sentences, safe to show: no key, no prompt, nothing of the request's content.
        param: the name of the request field at fault, if there is one.
        code: replaces the class's own code.
        retry_after: seconds after which trying again may help.
        headers: further response headers.
    """

    status: int = 500
    code: str = "internal_error"
    should_retry: ClassVar[bool | None] = None
    """What `x-should-retry` tells OpenAI's SDKs; None leaves it to the status."""
    said_by_own_model: bool = False
    """Whether a function of the team's that is served as a model raised it, for its caller."""

    def __init__(
        self,
        message: str = INTERNAL_ERROR,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.retry_after = retry_after
        self._headers = headers or {}

    @property
    def kind(self) -> str:
        """The class's own code: one of a few, whatever a provider said."""
        return type(self).code

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that go with this error."""
        headers = dict(self._headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after))
        if self.should_retry is not None:
            headers["X-Should-Retry"] = str(self.should_retry).lower()
        return headers


class OwnCallError(Exception):
    """Code calls a model in a way that can't work: by a wrong name, or with a wrong field.

    That is a mistake of the code, not of its client. The message holds nothing of the request's content; it is logged.
    """


class InvalidJSON(AppError):
    status, code = 400, "invalid_json"


class InvalidRequest(AppError):
    status, code = 422, "invalid_request"


class UnsupportedParameter(InvalidRequest):
    """The request asks for what this model can't do; another one, or another way of asking, may."""

    status, code = 400, "unsupported_parameter"


def invalid_request(errors: Iterable[Any]) -> InvalidRequest:
    """Return the error for what Pydantic found wrong: where and why, never what was sent.

    Args:
        errors: Pydantic's or FastAPI's list of errors. The one with the longest path is shown: where a value may have
            several types, it belongs to the type that was meant.
    """
    shown = max(errors, key=lambda error: len(error["loc"]))
    location = shown["loc"][1:] if shown["loc"][:1] and shown["loc"][0] in ("body", "query", "path") else shown["loc"]
    # Where a value may have several types, Pydantic adds their names to the path: `list[...]`, or `str` at its end.
    path = [str(part)[:64] for part in location if "[" not in str(part)]
    if len(path) > 1 and path[-1].removeprefix("constrained-") in ("str", "int", "float", "bool"):
        path.pop()
    if shown["type"] == "finite_number":
        path = path[:1]  # deeper names may be the sender's own
    param = ".".join(path)
    is_object = shown["type"] in ("dict_type", "model_type", "model_attributes_type", "dataclass_type")
    reason = "Input should be an object" if is_object else shown["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{param}: {reason}" if param else reason, param=param or None)


def unfit(error: ValidationError) -> InvalidRequest:
    """Return the error for what Pydantic refuses. A list of very many errors is not made: each takes a kilobyte."""
    if error.error_count() > MOST_ERRORS:
        return InvalidRequest(f"More than {MOST_ERRORS} values are invalid.")
    return invalid_request(error.errors(include_url=False, include_input=False))


class Unauthorized(AppError):
    status, code = 401, "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        """A 401 names its scheme (RFC 9110, section 11.6.1)."""
        return super().headers | {"WWW-Authenticate": "Bearer"}


class ModelNotAllowed(AppError):
    status, code = 403, "model_not_allowed"


class ModelNotFound(AppError):
    status, code = 404, "model_not_found"


class UnknownEndpoint(AppError):
    status, code = 404, "unknown_endpoint"


class RateLimited(AppError):
    status, code = 429, "rate_limit_exceeded"


class BudgetExceeded(RateLimited):
    code = "budget_exceeded"
    should_retry = False


class BudgetUnavailable(AppError):
    status, code = 503, "budget_unavailable"


class ModelNotPriced(AppError):
    status, code = 503, "model_not_priced"
    should_retry = False


class Overloaded(AppError):
    status, code = 503, "overloaded"


class AuthUnavailable(AppError):
    status, code = 503, "auth_unavailable"


class Draining(AppError):
    status, code = 503, "draining"


class ProviderError(AppError):
    """A provider failed.

    `retry` tells whether the same model may succeed at a second attempt, `unreached` whether no connection to it could
    be made, and `spent` whether it may have used tokens, although it has not told how many.
    """

    status, code = 502, "provider_error"
    retry: bool = False
    spent: bool = False

    def __init__(
        self,
        message: str,
        *,
        retry: bool | None = None,
        truncated: bool = False,
        unreached: bool = False,
        spent: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.truncated = truncated
        self.unreached = unreached
        self.spent = spent or truncated or (self.spent and not unreached)
        if retry is not None:
            self.retry = retry


class OwnModelFailed(ProviderError):
    """A function of the team's that is served as a model raised an exception that is none of ours."""

    status, code = 500, "own_model_failed"


class UnfitAnswer(ProviderError):
    """A model's answer does not fit the schema that it was asked for."""

    code = "unfit_answer"


class ProviderNotConfigured(ProviderError):
    status, code = 503, "provider_not_configured"
    should_retry = False


class ProviderMisconfigured(ProviderError):
    code = "provider_misconfigured"
    should_retry = False


class ProviderRefused(ProviderError):
    status, code = 400, "invalid_request"


class ProviderRateLimited(ProviderError):
    status, code = 429, "provider_rate_limited"
    retry = True


class ProviderTimeout(ProviderError):
    status, code = 504, "provider_timeout"
    spent = True
