"""Turns a provider's failure into one of our errors (app/errors.py). One function decides whose fault it was.

- The caller's: the provider refuses this request. The caller gets the provider's words; no retry, no fallback.
- Ours: the key, the account, the quota, the model's name. The caller gets none of the provider's words; a fallback.
- The provider's: everything else. Retries, a fallback, and the circuit breaker counts it.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from pydantic_core import from_json

from app.errors import (
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderRefused,
)
from app.llm.targets import Target
from app.network import host_of, is_loopback

log = structlog.get_logger("app.llm")

KEY_LIKE = re.compile(r"(?:Bearer\s+|\b(?:sk|pk|rk|gsk|xai|key|AIza)[-_])[\w.\-*]{6,}", re.IGNORECASE)

SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASS|CRED", re.IGNORECASE)
"""Names of environment variables that hold a secret: LiteLLM reads its keys from them by itself."""

OUR_ACCOUNT = re.compile(
    r"\b(credits?|billing|arrears?|arrearage|overdue|past[ _]due|insufficient[ _](quota|balance|funds))\b|"
    r"\b(balance|quota)\b[^.]{0,40}\b(exceeded|exhausted|insufficient|too low)\b|"
    r"\b(exceeded|exhausted)\b[^.]{0,20}\b(current quota|balance)\b|"
    r"\b(invalid|incorrect|wrong|missing|expired|no)[ _]api[ _]?key\b|"
    r"\bapi[ _-]?key\b[^.]{0,30}\b(not valid|invalid|incorrect|expired|missing|disabled)\b|\bapi_key_invalid\b",
    re.IGNORECASE,
)
"""What a provider says when our account or our key is at fault, whatever status it sends."""
RATE = re.compile(
    r"\b(rate[ _-]?limit\w*|too[ _]many[ _]requests|throttl\w+|resource[ _]exhausted|requests per)\b", re.IGNORECASE
)
"""What a provider says when we ask too often, whatever status it sends."""
GAVE_UP_WAITING = (408, 504, 524)  # statuses of proxies, behind which the answer may go on being written
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
"""Quoted parts of a provider's sentence, which may be the caller's own words."""
CONTEXT_OVERFLOW = re.compile(
    r"context[ _](length|window|size)|prompt is too long|input (is|was) too long|too many (input )?tokens|"
    r"maximum (number of|context|input) ?tokens?|exceeds? the (maximum|max|model)[^.]{0,30}tokens",
    re.IGNORECASE,
)
"""What providers say when a conversation is too long."""
REQUEST_ERRORS = ("invalid_request_error", "BadRequestError", "INVALID_ARGUMENT", "ValidationException")
"""Types of an error that came without a status, in which the provider refuses the request."""


@dataclass(frozen=True, slots=True)
class ProviderWords:
    """What a provider says about its failure.

    Attributes:
        message: its sentence; None if none was found.
        code: its code; None if it is a number.
        type: its type, which stands for a code where there is none.
        param: the field at fault.
        kinds: its code, type and status, for recognizing what happened.
        retry_after: seconds that it asks to wait, if the body tells (Google's RetryInfo).
    """

    message: str | None = None
    code: str | None = None
    type: str | None = None
    param: str | None = None
    kinds: tuple[str, ...] = ()
    retry_after: float | None = None


def words_of(body: Any) -> ProviderWords:
    """Return what a provider says, in whatever shape.

    Known shapes: `{"error": {...}}`, `{"error": "text"}`, `[{"error": ...}]`, `{"object": "error", "message": ...}`,
    `{"detail": ...}`, `{"message": ...}`, `{"msg": ...}`, plain text.

    Args:
        body: parsed JSON, or text.
    """
    if isinstance(body, list) and body:
        return words_of(body[0])
    if isinstance(body, str):
        text = body.strip()
        return ProviderWords(text or None) if not text.startswith("<") else ProviderWords()
    if not isinstance(body, dict):
        return ProviderWords()
    error = body.get("error", body)
    if not isinstance(error, dict):
        inner = words_of(error)
        outer = words_of({k: v for k, v in body.items() if k != "error"})
        return replace(inner, kinds=outer.kinds) if inner.message else outer
    found = next((error[name] for name in ("message", "detail", "msg", "error", "Message") if error.get(name)), None)
    if isinstance(found, list | dict):  # FastAPI's list of errors, or one more level
        found = words_of(found).message
    kinds = [value for name in ("code", "type", "status") if isinstance(value := error.get(name), str) and value]
    code, kind, param = error.get("code"), error.get("type"), error.get("param")
    return ProviderWords(
        message=found if isinstance(found, str) else None,
        code=code if _is_name(code) else None,
        type=kind if _is_name(kind) else None,
        param=param if isinstance(param, str) else None,
        kinds=tuple(kinds),
        retry_after=_retry_info(error.get("details")),
    )


def _is_name(value: Any) -> bool:
    """Return whether a value is a name, and not a number in digits, such as Azure's "400"."""
    return isinstance(value, str) and bool(value) and not value.isdecimal()


def _retry_info(details: Any) -> float | None:
    """Return the seconds of Google's `RetryInfo`: `{"@type": "...RetryInfo", "retryDelay": "34s"}`."""
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?s", delay):
            return float(delay[:-1])
    return None


def parse_body(body: bytes) -> Any:
    """Return an error's body as JSON if it is JSON, else as text."""
    try:
        return from_json(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def provider_failure(target: Target, status: int, body: Any, headers: Mapping[str, str] | None = None) -> ProviderError:
    """Return our error for a provider's error response: this decides whose fault it was.

    Args:
        target: the model.
        status: the provider's HTTP status.
        body: the response's body, as JSON or text; or the `error` object of an event; None if nothing could be read.
        headers: the provider's response headers, for `Retry-After`.
    """
    model, words = target.name, words_of(body)
    said = QUOTED.sub("", " ".join(filter(None, (*words.kinds, words.message))))
    wait = retry_after(headers or {})
    wait = words.retry_after if wait is None else wait
    is_overflow = bool(CONTEXT_OVERFLOW.search(said))
    is_request = status in (400, 413, 422) and not is_overflow
    is_ours = (is_request and OUR_ACCOUNT.search(said)) or (
        # A used-up quota, which waiting does not restore. Google speaks of billing in every 429, and says how long to
        # wait where waiting helps.
        status == 429 and ("insufficient_quota" in words.kinds or (wait is None and OUR_ACCOUNT.search(said)))
    )
    if status in (401, 402, 403, 404) or is_ours:
        reason = {401: "our key", 404: "the model's name or address"}.get(status, "our account or key")
        return ProviderMisconfigured(
            f"The provider of model {model!r} does not accept {reason} ({status}). "
            "Only the operators of this service can fix that."
        )
    if status == 429 or (is_request and RATE.search(said)):
        return ProviderRateLimited(f"The provider of model {model!r} has reached its rate limit.", retry_after=wait)
    if status in (400, 413, 422):
        code = words.code or ("context_length_exceeded" if is_overflow else words.type)
        text, secrets = words.message, target.secrets
        return ProviderRefused(
            redact(text, secrets) if text else f"The provider of model {model!r} refused the request ({status}).",
            code=redact(code, secrets)[:128] if code else None,
            param=redact(words.param, secrets)[:256] if words.param else None,
        )
    return ProviderError(
        f"The provider of model {model!r} failed ({status}).",
        retry=status in (408, 409) or status >= 500,
        retry_after=wait,
        spent=status in GAVE_UP_WAITING,
    )


def error_in(body: Any) -> Any:
    """Return the error that came with status 200, in a body or in an event of a stream; None if there is none.

    Known shapes: `{"error": ...}`, `[{"error": ...}]`, `{"object": "error", ...}`, Cohere's last event.
    """
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, dict):
        return None
    if body.get("error") or body.get("object") == "error":
        return body.get("error") or body
    end = body.get("delta")
    if isinstance(end, dict) and end.get("finish_reason") == "ERROR":
        return end.get("error") or end
    return None


def failure_in_body(target: Target, error: Any) -> ProviderError:
    """Return our error for an `error` that came with status 200, in a body or in a stream's event."""
    member = error if isinstance(error, dict) else {}
    numbers = [str(member.get(name)) for name in ("code", "status", "status_code")]
    statuses = [int(number) for number in numbers if re.fullmatch("[45][0-9]{2}", number)]
    if not statuses:
        words = words_of({"error": error})
        said = QUOTED.sub("", " ".join(filter(None, (*words.kinds, words.message))))
        if any(kind in REQUEST_ERRORS for kind in words.kinds):
            statuses = [400]
        elif OUR_ACCOUNT.search(said):
            statuses = [402]
        elif RATE.search(said):
            statuses = [429]
    if statuses and statuses[0] != 500:
        failure = provider_failure(target, statuses[0], {"error": error})
    else:
        failure = ProviderError(f"The provider of model {target.name!r} reported an error.", retry=True)
    failure.spent = type(failure) is ProviderError
    return failure


def unreadable(model: str) -> ProviderError:
    """Return our error for an answer that does not follow OpenAI's protocol."""
    return ProviderError(f"The provider of model {model!r} sent an answer that can't be read.", spent=True)


def unavailable(model: str) -> ProviderError:
    """Return our error for a model whose circuit breaker is open, and whose fallbacks can't take the request."""
    return ProviderError(f"Model {model!r} keeps failing, and no fallback could answer. Try again in a moment.")


def cut_off(model: str) -> ProviderError:
    """Return our error for an answer that stopped before it was complete."""
    return ProviderError(f"The answer of model {model!r} was cut off by its provider.", retry=True, truncated=True)


def unreachable(target: Target, reason: str, *, unreached: bool) -> ProviderError:
    """Return our error for a connection that could not be made, or was lost before an answer; log the reason.

    Args:
        target: the model.
        reason: name of the exception.
        unreached: whether nothing had been sent.
    """
    hint = {"proxy": host_of(target.proxy)} if target.proxy else {}
    if unreached and is_loopback(urlsplit(target.api_base or "").hostname or "") and _in_container():
        hint["hint"] = "inside a container, localhost is the container itself; the host is host.docker.internal"
    log.warning("provider can't be reached", model=target.name, reason=reason, **hint)
    message = f"The provider of model {target.name!r} can't be reached."
    # Where it was reached, the connection was lost after the request had been sent.
    return ProviderError(message, retry=True, unreached=unreached, spent=not unreached)


def _in_container() -> bool:
    """Return whether this process runs in a container of Docker, Podman or Kubernetes."""
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(mark.exists() for mark in marks)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a provider asks to wait: `retry-after-ms`, `Retry-After` (RFC 9110, section 10.2.3)."""
    milliseconds = (headers.get("retry-after-ms") or "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", milliseconds):
        return float(milliseconds) / 1000
    value = (headers.get("retry-after") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def redact(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """Return a provider's text, at most 1,000 characters, without our keys and anything that looks like a key.

    Args:
        text: what the provider says.
        secrets: `Target.secrets`; those in the environment are removed anyway.
    """
    ours = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8}
    for secret in sorted(ours | secrets, key=len, reverse=True):
        text = text.replace(secret, "[removed]")
    return KEY_LIKE.sub("[removed]", text)[:1000]
