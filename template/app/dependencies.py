"""What endpoints ask for: `LLM`, `Config`, `CurrentCaller`, and a strictly read body."""

from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request
from pydantic import ValidationError
from pydantic_core import from_json

from app.callers import HOW_TO_ADD, LOCAL, Caller
from app.config import Settings
from app.errors import InvalidJSON, Unauthorized, invalid_request
from app.exchange import exchange_of
from app.llm.client import LLMClient
from app.llm.targets import is_loopback
from app.models import Wire

FORWARDING_HEADERS = ("forwarded", "via", "x-real-ip", "cf-connecting-ip", "true-client-ip")

W = TypeVar("W", bound=Wire)


def get_settings(request: Request) -> Settings:
    """Return the settings that the application was made with."""
    settings: Settings = request.app.state.settings
    return settings


async def get_caller(request: Request) -> Caller:
    """Return who calls.

    Raises:
        AuthUnavailable: the issuer of tokens can't be reached.
        Unauthorized: a key is needed, or the one that was sent is not known.
    """
    state = request.app.state
    scheme, _, key = _header(request, b"authorization").decode("latin-1").partition(" ")
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
    exchange_of(request.scope).record.caller = caller.name
    return caller


CurrentCaller = Annotated[Caller, Depends(get_caller)]


async def get_llm(request: Request) -> LLMClient:
    """Return the models, as this caller may use them. The endpoint is cancelled when its client leaves.

    Raises:
        Unauthorized, AuthUnavailable: as in `get_caller`.
    """
    caller = await get_caller(request)  # not by Depends: each one costs as much as reading a small body
    exchange = exchange_of(request.scope)
    exchange.cancel_on_disconnect()
    llm: LLMClient = request.app.state.llm
    return llm.for_caller(caller, exchange.record)


LLM = Annotated[LLMClient, Depends(get_llm)]
Config = Annotated[Settings, Depends(get_settings)]


async def read_body(request: Request, kind: type[W]) -> W:
    """Return a request's JSON body as `kind`.

    Raises:
        HTTPException: 415, the body is of another media type.
        InvalidJSON: it isn't JSON; NaN isn't.
        InvalidRequest: it doesn't fit.
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
    """Return a header as it is here: not as it came in, since the team's middleware may have changed it."""
    return next((value for found, value in request.scope["headers"] if found == name), b"")


def is_local(request: Request) -> bool:
    """Return whether a request was made on this machine, by its user.

    The peer must be loopback, and so must `Host` (else a name that an attacker rebinds to 127.0.0.1 would do) and any
    `Origin` (else any website that the developer visits could call). Proxies on this machine are told by their
    forwarding headers, by the `Host` that they pass on, or by speaking HTTP/1.0.
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
    except ValueError:  # a bracket too many or too few
        return False
    return all(host is not None and is_loopback(host) for host in hosts)
