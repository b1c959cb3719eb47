"""Turns a provider's failure into one of our errors (app/errors.py)."""

import os
import re
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from app.errors import (
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderRefused,
)
from app.llm.targets import Target
from app.network import is_loopback

log = structlog.get_logger("app.llm")

KEY_LIKE = re.compile(r"(?:Bearer\s+|\b(?:sk|pk|rk|gsk|xai|key|AIza)[-_])[\w.\-*]{6,}", re.IGNORECASE)

SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASS|CRED", re.IGNORECASE)
"""Names of environment variables that hold a secret: LiteLLM reads its keys from them by itself."""


def provider_failure(
    model: str,
    status: int,
    error: Any = None,
    headers: Mapping[str, str] | None = None,
    secrets: Iterable[str | None] = (),
) -> ProviderError:
    """Return our error for a provider's error response.

    Args:
        model: the model's public name.
        status: the provider's HTTP status.
        error: the provider's `error` object, if its body had one.
        headers: the provider's response headers, for `Retry-After`.
        secrets: values that are removed from the provider's text.
    """
    member = error if isinstance(error, dict) else {}
    code = member.get("code") or member.get("type")
    if status in (400, 413, 422):
        text = member.get("message") if isinstance(member.get("message"), str) else None
        return ProviderRefused(
            redact(text, secrets) if text else f"The provider of model {model!r} refused the request ({status}).",
            code=redact(code, secrets)[:128] if isinstance(code, str) else None,
            param=redact(member["param"], secrets)[:256] if isinstance(member.get("param"), str) else None,
        )
    if status in (401, 402, 403, 404) or (status == 429 and "insufficient_quota" in (code, member.get("type"))):
        reason = {401: "our key", 402: "our account", 404: "the model's name or address", 429: "our quota"}
        return ProviderMisconfigured(
            f"The provider of model {model!r} does not accept {reason.get(status, 'us')} ({status}). "
            "Only the operators of this service can fix that."
        )
    if status == 429:
        return ProviderRateLimited(
            f"The provider of model {model!r} has reached its rate limit.", retry_after=retry_after(headers or {})
        )
    return ProviderError(
        f"The provider of model {model!r} failed ({status}).",
        retry=status in (408, 409) or status >= 500,
        retry_after=retry_after(headers or {}),
    )


def failure_in_body(model: str, error: Any, secrets: Iterable[str | None] = ()) -> ProviderError:
    """Return our error for an `error` object that came with status 200, in a body or in a stream's event."""
    code = error.get("code") if isinstance(error, dict) else None
    status = int(code) if isinstance(code, int | str) and re.fullmatch("[45][0-9]{2}", str(code)) else 500
    if status != 500:
        return provider_failure(model, status, error, None, secrets)
    return ProviderError(f"The provider of model {model!r} reported an error.", retry=True)


def unreadable(model: str) -> ProviderError:
    """Return our error for an answer that does not follow OpenAI's protocol."""
    return ProviderError(f"The provider of model {model!r} sent an answer that can't be read.")


def unavailable(model: str) -> ProviderError:
    """Return our error for a model whose circuit breaker is open, and whose fallbacks can't take the request."""
    return ProviderError(f"Model {model!r} keeps failing, and no fallback could answer. Try again in a moment.")


def cut_off(model: str) -> ProviderError:
    """Return our error for an answer that stopped before it was complete."""
    return ProviderError(f"The answer of model {model!r} was cut off by its provider.", retry=True, truncated=True)


def unreachable(target: Target, reason: str) -> ProviderError:
    """Return our error for a connection that could not be made, or was lost before an answer; log the reason.

    Args:
        target: the model.
        reason: name of the exception.
    """
    hint = {}
    if (
        reason != "ServerDisconnectedError"
        and is_loopback(urlsplit(target.api_base or "").hostname or "")
        and _in_container()
    ):
        hint["hint"] = "inside a container, localhost is the container itself; the host is host.docker.internal"
    log.warning("provider can't be reached", model=target.name, reason=reason, **hint)
    return ProviderError(f"The provider of model {target.name!r} can't be reached.", retry=True)


def _in_container() -> bool:
    """Return whether this process runs in a container of Docker, Podman or Kubernetes."""
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(mark.exists() for mark in marks)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a provider asks to wait; `Retry-After` may be a date (RFC 9110, section 10.2.3)."""
    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def redact(text: str, secrets: Iterable[str | None]) -> str:
    """Return a provider's text, at most 1,000 characters, without our keys and anything that looks like a key."""
    ours = [value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8]
    for secret in sorted({*filter(None, secrets), *ours}, key=len, reverse=True):
        text = text.replace(secret, "[removed]")
    return KEY_LIKE.sub("[removed]", text)[:1000]
