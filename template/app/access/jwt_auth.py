"""JWT authentication: tokens (RFC 7519) of one issuer, checked with the public keys that it publishes (RFC 7517)."""

import asyncio
import time

import aiohttp
import jwt
import structlog

from app.access.callers import Caller
from app.config import JwtSettings
from app.errors import AuthUnavailable, Unauthorized
from app.network import proxy_for

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures with public keys only: a shared secret would have to be stored here, and `none` is no signature."""
KEYS_FOR = 3600.0
"""Seconds after which the issuer's keys are fetched again."""
FETCH_AGAIN_AFTER = 10.0
"""Minimum seconds between two fetches, whatever key ids the tokens name."""
FETCH_WITHIN = 5.0
"""Seconds that the issuer may take to answer."""

UNREADABLE = (jwt.PyJWTError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What malformed tokens and key sets make the library raise."""


log = structlog.get_logger("app.auth")


class JwtAuth:
    """Finds the caller that a token names.

    Args:
        settings: the issuer, and what its subjects may use.
    """

    def __init__(self, settings: JwtSettings) -> None:
        self._settings = settings
        self._models = frozenset(settings.models) if settings.models is not None else None
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def find(self, token: str) -> Caller:
        """Return the caller that a token names.

        Raises:
            Unauthorized: the token is not for this service, not signed by the issuer, or not valid now.
            AuthUnavailable: the issuer's keys can't be fetched.
        """
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            claims = jwt.decode(
                token,
                await self._key(key_id),
                algorithms=ALGORITHMS,
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                options={"require": ["exp", "iss", "aud"]},
                leeway=30,
            )
            subject = claims[self._settings.subject]
        except jwt.ExpiredSignatureError:
            raise Unauthorized("This token has expired.") from None
        except UNREADABLE:
            raise Unauthorized("This token is not valid here.") from None
        return Caller(f"{subject}"[:256], self._models, self._settings, label="jwt")

    async def _key(self, key_id: str | None) -> jwt.PyJWK:
        now = time.monotonic()
        known = key_id in self._keys
        stale = not known or now > self._fetched_at + KEYS_FOR
        if stale and now > self._tried_at + FETCH_AGAIN_AFTER and not (known and self._lock.locked()):
            async with self._lock:
                if now > self._tried_at + FETCH_AGAIN_AFTER:
                    await self._fetch()
        if not self._keys:
            raise AuthUnavailable("The issuer of tokens can't be reached. Try again.", retry_after=FETCH_AGAIN_AFTER)
        return self._keys[key_id]

    async def _fetch(self) -> None:
        """Fetch the issuer's keys. If that fails, the keys that we have stay valid."""
        url = self._settings.jwks_url
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_WITHIN)) as session,
                session.get(url, proxy=proxy_for(url), raise_for_status=True) as answer,
            ):
                keys = jwt.PyJWKSet.from_dict(await answer.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError, *UNREADABLE) as error:
            log.error("the issuer's keys can't be fetched", error=type(error).__name__)
        else:
            self._keys = {key.key_id: key for key in keys.keys}
            self._fetched_at = time.monotonic()
        self._tried_at = time.monotonic()
