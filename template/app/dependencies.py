"""What endpoints may ask for: `LLM`, `Config`, `CurrentCaller`, and a strictly validated body."""

from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request
from pydantic import ValidationError
from pydantic_core import from_json

from app.access.callers import HOW_TO_ADD, LOCAL, Caller
from app.config import Settings
from app.errors import InvalidJSON, Unauthorized, invalid_request
from app.http.application import state_of
from app.http.exchange import exchange_of
from app.llm.client import LLMClient
from app.models import Wire
from app.network import is_loopback

FORWARDING_HEADERS = ("forwarded", "via", "x-real-ip", "cf-connecting-ip", "true-client-ip")

W = TypeVar("W", bound=Wire)


def get_settings(request: Request) -> Settings:
    """Return the settings that the application was made with."""
    return state_of(request).settings


async def get_caller(request: Request) -> Caller:
    """Return who calls.

    Raises:
        AuthUnavailable: the issuer of tokens can't be reached.
        Unauthorized: a key is needed, or the one that was sent is not known.
    """
    state = state_of(request)
    scheme, _, key = _header(request, b"authorization").decode("latin-1").partition(" ")
    if not key:
        scheme, key = "bearer", _header(request, b"x-api-key").decode("latin-1")  # as Anthropic's clients send it
    caller: Caller | None = None
    if scheme.lower() == "bearer" and key:
        caller = state.keys.find(key.strip())
        if caller is None and state.jwt_auth and key.count(".") == 2:
            caller = await state.jwt_auth.find(key.strip())
    if caller is None and state.settings.dev:
        if not is_local(request):
            raise Unauthorized(f"Without a key, --dev serves this machine only. {HOW_TO_ADD}")
        caller = LOCAL
    if caller is None and not state.keys and not state.jwt_auth:
        caller = state.anonymous
    if caller is None:
        raise Unauthorized("This key is not known here." if key else f"A key is needed. {HOW_TO_ADD}")
    exchange_of(request.scope).caller = caller.name
    return caller


CurrentCaller = Annotated[Caller, Depends(get_caller)]
"""Who calls. An endpoint that asks for it, or for `LLM`, needs a key."""


async def get_llm(request: Request) -> LLMClient:
    """Return a client of the models for this request's caller. The endpoint is cancelled when its client leaves.

    Raises:
        Unauthorized, AuthUnavailable: as in `get_caller`.
    """
    caller = await get_caller(request)  # not by Depends: each one costs as much as reading a small body
    exchange = exchange_of(request.scope)
    exchange.cancel_on_disconnect()
    return LLMClient(state_of(request).upstreams, caller, exchange.totals)


LLM = Annotated[LLMClient, Depends(get_llm)]
"""The models, for this request's caller."""
Config = Annotated[Settings, Depends(get_settings)]
"""The settings."""


async def read_body(request: Request, kind: type[W]) -> W:
    """Return a request's JSON body as `kind`.

    Raises:
        HTTPException: 415, the body has another media type.
        InvalidJSON: it is not JSON, or has a NaN or an infinity in it.
        InvalidRequest: it does not fit `kind`.
    """
    media_type = _header(request, b"content-type").partition(b";")[0].strip().lower()
    if media_type != b"application/json" and not media_type.endswith(b"+json"):
        raise HTTPException(415, "Send the body as Content-Type: application/json.")
    try:
        fields = from_json(await request.body(), allow_inf_nan=False)
    except ValueError:
        raise InvalidJSON("The body is not valid JSON.") from None
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False)) from None


def _header(request: Request, name: bytes) -> bytes:
    """Return a header as it is now: the team's middleware may have changed it."""
    return next((value for found, value in request.scope["headers"] if found == name), b"")


def is_local(request: Request) -> bool:
    """Return whether a request was made on this machine.

    The peer must be a loopback address. `Host` must be one too; otherwise an attacker's domain could point to 127.0.0.1
    (DNS rebinding). If there is an `Origin`, it must be one too; otherwise any website that the developer visits could
    call. A proxy on this machine is recognized by its forwarding headers, by the `Host` that it passes on, or by
    HTTP/1.0.
    """
    headers = request.headers
    if any(name in headers for name in FORWARDING_HEADERS) or any(name.startswith("x-forwarded-") for name in headers):
        return False
    if request.client is None or not is_loopback(request.client.host) or request.scope["http_version"] == "1.0":
        return False
    try:
        hosts = [urlsplit(f"//{headers.get('host', '')}").hostname]
        if "origin" in headers:
            hosts.append(urlsplit(headers["origin"]).hostname)
    except ValueError:  # unbalanced brackets
        return False
    return all(host is not None and is_loopback(host) for host in hosts)
