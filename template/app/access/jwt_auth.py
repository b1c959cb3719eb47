"""JWT authentication: tokens (RFC 7519) of one issuer, checked with the public keys that it publishes (RFC 7517)."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import aiohttp
import jwt
import structlog
from jwt.algorithms import OKPAlgorithm
from jwt.exceptions import InvalidSubjectError
from pydantic_core import from_json

from app.access.callers import Caller
from app.config import JWT_NAMES, JwtSettings
from app.errors import AuthUnavailable, Unauthorized
from app.network import proxy_for

RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ED25519 = ("EdDSA", "Ed25519")
"""Both names of one algorithm (RFC 9864)."""
ALGORITHMS = {*RSA_ALGORITHMS, *ED25519, "ES256", "ES384", "ES512"}
"""Signatures with public keys only: a shared secret would have to be stored here, and `none` is no signature."""
KEYS_FOR = 3600.0
"""Seconds after which the issuer's keys are fetched again."""
FETCH_AGAIN_AFTER = 10.0
"""Minimum seconds between two fetches, whatever key ids the tokens name."""
FETCH_WITHIN = 5.0
"""Seconds that the issuer may take to answer."""
MAX_KEY_SET_BYTES = 256 * 1024
LONGEST_SUBJECT = 128
"""Characters of a subject that are its name; a longer one is named by its hash."""

UNREADABLE = (jwt.PyJWTError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What malformed tokens and key sets make the library raise."""
PublicKey = tuple[str | None, tuple[str, ...], Any]
"""A key's id, the algorithms that it is good for, and the key."""

log = structlog.get_logger("app.auth")


class JwtAuth:
    """Finds the caller that a token names.

    Args:
        settings: the issuer, and what its subjects may use.
        max_waiting: how many may wait for the issuer's first keys at once, 1 or more. Anybody can send a token.
    """

    def __init__(self, settings: JwtSettings, max_waiting: int = 1000) -> None:
        self._settings = settings
        self._models = frozenset(settings.models) if settings.models is not None else None
        self._keys: list[PublicKey] = []
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._places = asyncio.Semaphore(max_waiting)
        with contextlib.suppress(ValueError):  # it is registered already
            jwt.register_algorithm("Ed25519", OKPAlgorithm())

    async def find(self, token: str, request_id: str = "") -> Caller:
        """Return the caller that a token names. Why a token is refused is told by the log alone.

        Args:
            token: the token.
            request_id: for the log.

        Raises:
            Unauthorized: the token is not for this service, not signed by the issuer, or not valid now.
            AuthUnavailable: the issuer's keys can't be fetched, or are being fetched just now.
        """
        try:
            name = _name((await self._claims(token))[self._settings.subject])
        except UNREADABLE as error:
            log.info("token refused", reason=type(error).__name__, request_id=request_id)
            raise Unauthorized("This token is not valid here.") from None
        return Caller(name, self._models, self._settings, label="jwt")

    async def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS:
            raise jwt.InvalidAlgorithmError
        failure: type[Exception] = jwt.InvalidKeyError
        for _, algorithms, key in await self._named(header.get("kid")):
            if algorithm in algorithms:
                try:
                    return jwt.decode(
                        token,
                        key,
                        algorithms=[algorithm],
                        audience=self._settings.audience,
                        issuer=self._settings.issuer,
                        options={"require": ["exp", "iss", "aud", self._settings.subject]},
                        leeway=30,
                    )
                except jwt.InvalidSignatureError:
                    failure = jwt.InvalidSignatureError
        raise failure

    async def _named(self, key_id: str | None) -> list[PublicKey]:
        """Return the keys that have an id, or none; of a token that names no key, all."""

        def named() -> list[PublicKey]:
            return [key for key in self._keys if key_id is None or key[0] in (key_id, None)]

        now = time.monotonic()
        known = bool(named())
        stale = not known or now > self._fetched_at + KEYS_FOR
        if stale and now > self._tried_at + FETCH_AGAIN_AFTER:
            if self._fetching is None or self._fetching.done():
                # A task of its own: who leaves doesn't end it for the others.
                self._fetching = asyncio.create_task(self._fetch())
            elif known:
                return named()
            elif self._keys or self._places.locked():
                raise AuthUnavailable("The issuer's keys are being fetched. Try again.", retry_after=1)
            async with self._places:
                await asyncio.shield(self._fetching)
        if not self._keys:
            raise AuthUnavailable("The issuer of tokens can't be reached. Try again.", retry_after=FETCH_AGAIN_AFTER)
        return named()

    async def _fetch(self) -> None:
        """Fetch the issuer's keys. If that fails, the keys that we have stay valid."""
        url = self._settings.jwks_url
        status, body = None, b""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_WITHIN)) as session,
                session.get(url, proxy=proxy_for(url), allow_redirects=False) as answer,
            ):
                status = answer.status
                while len(body) <= MAX_KEY_SET_BYTES and (part := await answer.content.readany()):
                    body += part
            keys = list(_public_keys(from_json(body))) if len(body) <= MAX_KEY_SET_BYTES else []
            if status != HTTPStatus.OK or not keys:
                raise LookupError
        except (aiohttp.ClientError, TimeoutError, *UNREADABLE) as error:
            log.error("the issuer's keys can't be fetched", error=type(error).__name__, status=status, bytes=len(body))
        else:
            self._keys = keys
            self._fetched_at = time.monotonic()
        self._tried_at = time.monotonic()


def _public_keys(key_set: Any) -> Iterator[PublicKey]:
    """Yield the keys of a JSON Web Key Set that sign. Those that can't be read are left out (RFC 7517, section 5)."""
    for jwk in key_set["keys"]:
        with contextlib.suppress(*UNREADABLE):
            if jwk.get("use", "sig") == "sig" and "verify" in jwk.get("key_ops", ["verify"]):
                kind = jwk["kty"]
                # Without its `alg`, which may be one that the library doesn't know: `EC` and `OKP` name their curve.
                key = jwt.PyJWK({name: value for name, value in jwk.items() if name != "alg"})
                known = {"RSA": RSA_ALGORITHMS, "OKP": ED25519}.get(kind, (key.algorithm_name,))
                named = jwk.get("alg") or known[0]
                algorithms = known if "alg" not in jwk or kind == "OKP" else (named,)
                if named in known and named in ALGORITHMS:
                    yield jwk.get("kid"), algorithms, key.key


def _name(text: Any) -> str:
    """Return the name of a subject, which no caller with a key has, and no other subject."""
    if not isinstance(text, str) or not text:  # a number would be named like its text; RFC 7519, section 4.1.2
        raise InvalidSubjectError
    digest = hashlib.sha256(text.encode()).hexdigest()  # half a character raises an error here
    return JWT_NAMES + (f"sha256:{digest}" if len(text) > LONGEST_SUBJECT or text.startswith("sha256:") else text)
