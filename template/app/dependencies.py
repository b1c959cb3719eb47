"""What endpoints may ask for: `LLM`, `Config`, `CurrentCaller`, and a strictly validated body."""

from typing import Annotated

from fastapi import Depends, HTTPException, Request
from starlette.requests import HTTPConnection

from app.access.callers import HOW_TO_ADD, LOCAL, Caller
from app.config import Settings
from app.errors import Unauthorized
from app.http.application import state_of
from app.http.bodies import W, read_json
from app.http.exchange import exchange_of
from app.http.local_requests import is_local
from app.llm.client import LLMClient


def get_settings(request: HTTPConnection) -> Settings:
    """Return the settings that the application was made with."""
    return state_of(request).settings


async def get_caller(request: HTTPConnection) -> Caller:
    """Return who calls.

    Raises:
        AuthUnavailable: the issuer of tokens can't be reached.
        Unauthorized: a key is needed, or the one that was sent is not known.
    """
    caller = await find_caller(request)
    if caller.anonymous:
        raise Unauthorized(f"A key is needed. {HOW_TO_ADD}")
    return caller


async def find_caller(request: HTTPConnection) -> Caller:
    """Return who calls, as `get_caller` does; while there are no callers, anybody, who may use only the demo model."""
    state = state_of(request)
    exchange = exchange_of(request.scope) if request.scope["type"] == "http" else None  # a WebSocket has none
    scheme, _, key = _header(request, b"authorization").decode("latin-1").partition(" ")
    if not key:
        scheme, key = "bearer", _header(request, b"x-api-key").decode("latin-1")  # as Anthropic's clients send it
    caller: Caller | None = None
    if scheme.lower() == "bearer" and key:
        caller = state.keys.find(key.strip())
        if caller is None and state.jwt_auth and key.count(".") == 2:
            caller = await state.jwt_auth.find(key.strip(), exchange.request_id if exchange else "")
    if caller is None and state.settings.dev:
        if not is_local(request):
            raise Unauthorized(f"Without a key, --dev serves this machine only. {HOW_TO_ADD}")
        caller = LOCAL
    if caller is None and not state.keys and not state.jwt_auth:
        caller = state.anonymous
    if caller is None:
        raise Unauthorized("This key is not known here." if key else f"A key is needed. {HOW_TO_ADD}")
    if exchange:
        exchange.caller = caller.name
    return caller


CurrentCaller = Annotated[Caller, Depends(get_caller)]
"""Who calls. An endpoint that asks for it, or for `LLM`, needs a key."""


async def get_llm(request: Request) -> LLMClient:
    """Return a client of the models for this request's caller. The endpoint is cancelled when its client leaves.

    Raises:
        Unauthorized, AuthUnavailable: as in `get_caller`.
    """
    caller = await find_caller(request)  # not by Depends: each one costs as much as reading a small body
    exchange = exchange_of(request.scope)
    exchange.cancel_on_disconnect()
    return LLMClient(state_of(request).upstreams, caller, exchange.totals)


LLM = Annotated[LLMClient, Depends(get_llm)]
"""The models, for this request's caller."""
Config = Annotated[Settings, Depends(get_settings)]
"""The settings."""


async def read_body(request: Request, kind: type[W], llm: LLMClient) -> W:
    """Return a request's JSON body as `kind`, once its caller is admitted.

    Raises:
        HTTPException: 415, the body has another media type.
        InvalidJSON, InvalidRequest, Overloaded: as in `read_json`.
        RateLimited: as in `LLMClient.admitted`.
    """
    media_type = _header(request, b"content-type").partition(b";")[0].strip().lower()
    if media_type != b"application/json" and not media_type.endswith(b"+json"):
        raise HTTPException(415, "Send the body as Content-Type: application/json.")
    exchange_of(request.scope).reads_body = True  # which is not received before its caller is admitted
    async with llm.admitted():
        return await read_json(request, kind, state_of(request).bodies)


def _header(request: HTTPConnection, name: bytes) -> bytes:
    """Return a header as it is now: the team's middleware may have changed it."""
    for found, value in request.scope["headers"]:
        if found == name:
            return bytes(value)
    return b""
