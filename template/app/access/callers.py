"""Who may call: keys, kept as hashes only."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from app.config import CallerEntry, CallerKey, Limits
from app.errors import ModelNotAllowed, Unauthorized

HOW_TO_ADD = "Add a caller with `python -m app callers add NAME` and send its key as `Authorization: Bearer KEY`."

Scope = tuple[str, str, Limits]
"""`caller`, `model` or `service`, its name, and its limits."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Someone who may call: an application with a key, a person with a token, or the developer.

    Attributes:
        name: from the table of callers, or the token's subject; shown in logs.
        models: public names of the models that this caller may use; None means all.
        limits: how much this caller may use; None means no limit.
        may_read_metrics: whether this caller may read `/metrics`.
        anonymous: whether no key was sent.
        label: the name in metrics; empty takes `name`.
        budgets: further budgets that its calls are charged to: those of calls that this one is a part of.
        depth: in how many own models this call stands: 1 for what an own model calls, 2 for what that one calls.
    """

    name: str
    models: frozenset[str] | None = None
    limits: Limits | None = None
    may_read_metrics: bool = False
    anonymous: bool = False
    label: str = ""
    budgets: tuple[Scope, ...] = ()
    depth: int = 0

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def may_use(self, model: str) -> bool:
        """Return whether a model is open to this caller."""
        return self.models is None or model in self.models

    def refusal(self, model: str) -> ModelNotAllowed | Unauthorized:
        """Return the error for a model that is not open to this caller."""
        if self.anonymous:
            return Unauthorized(f"This service serves only its demo model without a key. {HOW_TO_ADD}")
        return ModelNotAllowed(f"This key may not use model {model!r}.", param="model")


LOCAL = Caller("local", may_read_metrics=True)
"""The developer, on the developer's own machine."""


class CallerKeys:
    """Finds a caller by key.

    Args:
        callers: the table of callers.
    """

    def __init__(self, callers: Mapping[str, CallerEntry]) -> None:
        self._callers = [
            (key.sha256, key.expires, Caller(name, _names(entry.models), entry, may_read_metrics=entry.metrics))
            for name, entry in callers.items()
            for key in [*(CallerKey(sha256=digest) for digest in entry.key_sha256), *entry.keys]
        ]

    def __bool__(self) -> bool:
        return bool(self._callers)

    def named(self, name: str) -> Caller | None:
        """Return the caller of a name, or None."""
        return next((caller for _, _, caller in self._callers if caller.name == name), None)

    def find(self, key: str) -> Caller | None:
        """Return the caller that has a key, or None. The key is compared with every hash, each in constant time."""
        digest = hash_key(key)
        found = None
        for known, expires, caller in self._callers:
            if hmac.compare_digest(known, digest) and (expires is None or datetime.now(UTC).date() < expires):
                found = caller
        return found


def _names(models: list[str] | None) -> frozenset[str] | None:
    return frozenset(models) if models is not None else None


def new_key() -> str:
    """Return a new key: 256 random bits."""
    return "sk-app-" + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Return a key's hash, as it stands in the table. A key is random, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode()).hexdigest()
