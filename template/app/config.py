"""Settings: what can be configured, and where.

Strongest source first: arguments, the environment (prefix `APP_`, `__` between levels), `.env`, `settings.toml`, the
defaults below.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from app.network import ADDRESS, check_list, is_injected
from app.quotas import Budget, Price
from app.quotas import Group as Group
from app.quotas import Limits as Limits

SETTINGS_FILE = Path(__file__).with_name("settings.toml")
TABLES = ("models", "callers")
"""Tables whose keys the team chooses. A stronger source replaces the whole table."""
JWT_NAMES = "jwt:"
"""What the names of JWT subjects begin with, so that none is named like a caller with a key."""


def _split(value: Any) -> Any:
    """Read a list from JSON or from text with commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


StrList = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
if TYPE_CHECKING:
    Own = Any  # in the application's settings, the team's OwnSettings
else:
    Own = dict[str, Any]
Seconds = Annotated[float, Field(gt=0, le=86400)]


class SettingsError(ValueError):
    """The settings are wrong. The message says where and how, and never shows a value."""


class ModelEntry(Limits):
    """One row of the model table: where a public name leads.

    Attributes:
        upstream: LiteLLM's name of the model, `provider/model`; a name without a provider is OpenAI's.
        fallbacks: public names of the models that are tried, in order, if this one fails before its first byte.
        defaults: request fields that are sent if a request leaves them out.
        api_base: address of the API, if it is not the vendor's own; without a key in it.
        api_key_env: the environment variable that holds the key for `api_base`.
        protocol: how to speak to it; None chooses by provider.
        price: what it costs; None is not known, so that no call with a budget may use it.
        speaks: the dialects that are passed through to it, besides chat; None chooses by provider.
        max_tokens_limit: upper bound on a request's `max_tokens` for this model; None takes the setting of that name.
        stream_usage: ask for usage in streams; turn it off for servers that refuse `stream_options`.
    """

    upstream: str = Field(min_length=1)
    fallbacks: list[str] = []
    defaults: dict[str, JsonValue] = {}
    api_base: str | None = Field(default=None, pattern=ADDRESS)
    api_key_env: str | None = None
    protocol: Literal["openai", "litellm"] | None = None
    price: Price | None = None
    speaks: list[Literal["responses", "messages"]] | None = None
    max_tokens_limit: int | None = Field(default=None, gt=0)
    stream_usage: bool = True


class CallerKey(Group):
    """One of a caller's keys.

    Attributes:
        sha256: the key's hash.
        expires: the first day on which the key is refused, in UTC; None means never.
    """

    sha256: Sha256
    expires: date | None = None


class CallerEntry(Limits):
    """One row of the table of callers: the hash of a key (`python -m app callers add NAME`), and what it allows.

    Attributes:
        key_sha256: one hash, or several while a key is being rotated.
        keys: further keys, each with a day on which it expires.
        models: public names that this caller may use; None means all.
        metrics: whether this caller may read `/metrics`.
    """

    key_sha256: Annotated[list[Sha256], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    keys: list[CallerKey] = []
    models: list[str] | None = None
    metrics: bool = False

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if not self.key_sha256 and not self.keys:
            raise ValueError("a caller needs key_sha256 or keys")
        return self


class JwtSettings(Limits):
    """JSON Web Tokens: each subject of an issuer is a caller, with these limits.

    Attributes:
        issuer: the tokens' `iss`.
        audience: the tokens' `aud`; one of several, if this is a list.
        jwks_url: where the issuer publishes its public keys.
        subject: the claim that holds the caller's name.
        models: public names that they may use; None means all.
    """

    issuer: str
    audience: Annotated[
        list[Annotated[str, Field(min_length=1)]], NoDecode, BeforeValidator(_split), Field(min_length=1)
    ]
    jwks_url: str = Field(pattern=r"^https?://\S+$")
    subject: str = "sub"
    models: list[str] | None = None


class Auth(Group):
    """Further ways to authenticate, besides the keys of the table of callers."""

    jwt: JwtSettings | None = None


class Timeouts(Group):
    """Time limits on a provider and on a client, in seconds.

    Attributes:
        connect: until the connection to a provider is made.
        first_token: until a stream's first event.
        idle: between two events of a stream; also for a client to read on, after which it is given up.
        total: for the whole call, with retries and fallbacks.
        receive: for a client to send a request's head. A body must bring 1,000 bytes a second, counted over as long.
        keep_alive: between two requests on a connection. The default is longer than proxies keep theirs.
    """

    connect: Seconds = 10
    first_token: Seconds = 60
    idle: Seconds = 60
    total: Seconds = 600
    receive: Seconds = 20
    keep_alive: Seconds = 75


class Settings(BaseSettings, Group):
    """All settings, each with a default that works. `Settings()` reads all sources but `.env`; see load_settings."""

    model_config = SettingsConfigDict(env_prefix="APP_", env_nested_delimiter="__", env_ignore_empty=True)

    name: str = "AI backend"
    description: str = "An OpenAI-compatible backend in front of our models."
    default_model: str = "gpt-4o"
    models: dict[str, ModelEntry] = {
        "gpt-4o": ModelEntry(upstream="openai/gpt-4o", defaults={"temperature": 0.7, "max_tokens": 1024}),
        "demo": ModelEntry(upstream="demo/echo"),
    }
    default_embedding_model: str | None = None  # None takes default_model
    callers: dict[str, CallerEntry] = {}
    auth: Auth = Auth()
    own: Own = Field(default={}, repr=False)

    dev: bool = False
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=64)
    trusted_proxies: StrList = []
    shutdown_grace: float = Field(default=30, ge=0, le=3600)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    api_docs: bool = False
    metrics: bool = True
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """A port of 127.0.0.1 alone, where `/metrics` needs no key; None is no such port."""
    max_body_memory: int = Field(default=120_000_000, gt=0)
    """Bytes that bodies of more than 64 kB, or with many values, may take in each process; one caller's half."""
    telemetry: bool = False
    playground: bool | None = None
    """None is on with `dev`, else off."""

    # Of projects with app/database/: docs/database.md. Empty is SQLite in data/; `off` keeps nothing.
    database_url: str = Field(default="", pattern=r"^(|off|(sqlite\+aiosqlite|postgresql\+psycopg)://.+)$", repr=False)
    database_pool: int = Field(default=10, ge=2, le=1000)
    database_timeout: float = Field(default=5, gt=0, le=60)
    keep_days: int = Field(default=30, ge=1, le=36500)
    background_answers: int = Field(default=50, ge=1, le=10000)

    cors_origins: StrList = ["*"]
    cors_credentials: bool = False

    limit_storage: str = Field(
        default="async+memory://", pattern=r"^async\+(memory://$|(valkeys?|rediss?)(\+unix)?://.+)", repr=False
    )
    usd_per_day: Budget | None = None
    usd_per_month: Budget | None = None
    """What all calls together may cost in a day, and in a month, of UTC."""
    budget_failure_mode: Literal["open", "closed"] = "closed"
    """While the limit storage fails: `open` lets each process count budgets for itself, `closed` answers 503."""
    image_hosts: StrList = []
    """`host` or `host:port` whose images and files LiteLLM may fetch over http too, and within the own network."""
    max_in_flight: int = Field(default=2000, gt=0)
    max_body_bytes: int = Field(default=20_000_000, gt=0)
    max_tokens_limit: int = Field(default=131072, gt=0)
    retries: int = Field(default=2, ge=0, le=10)
    timeouts: Timeouts = Timeouts()
    _check_lists = field_validator("cors_origins", "trusted_proxies", "image_hosts", mode="after")(check_list)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if self.cors_credentials and "*" in self.cors_origins:
            raise ValueError('cors_credentials needs cors_origins by name, not "*"')
        if any(name.startswith(JWT_NAMES) for name in self.callers):
            raise ValueError(f"callers: names that begin with {JWT_NAMES} are those of JWT subjects")
        if self.metrics_port == self.port:
            raise ValueError("metrics_port and port are the same")
        if self.default_model not in self.models:
            raise ValueError(f"default_model {self.default_model!r} has no [models.{json.dumps(self.default_model)}]")
        references = {f"models.{name}.fallbacks": model.fallbacks for name, model in self.models.items()}
        references |= {f"callers.{name}.models": caller.models or [] for name, caller in self.callers.items()}
        references["auth.jwt.models"] = (self.auth.jwt.models if self.auth.jwt else None) or []
        references["default_embedding_model"] = [self.default_embedding_model or self.default_model]
        for place, names in references.items():
            if unknown := [name for name in names if name not in self.models]:
                raise ValueError(f"{place} names {unknown[0]!r}, which is not in the model table")
        return self

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls), _File(settings_cls, toml_file=settings_file())


def settings_file() -> Path:
    """Return where the settings file is."""
    return Path(os.environ.get("APP_SETTINGS_FILE") or SETTINGS_FILE)


class _Environment(EnvSettingsSource):
    """`APP_` variables, a table as one JSON value, and the `PORT` that hosting platforms set."""

    def __call__(self) -> dict[str, Any]:
        values = _without_tables_of(self.current_state, super().__call__())
        if port := os.environ.get("PORT"):
            values.setdefault("port", port)
        return values

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in super()._load_env_vars().items() if not is_injected(name, value)}


class _File(TomlConfigSettingsSource):
    """The settings file, with or without a byte order mark."""

    def __call__(self) -> dict[str, Any]:
        return _without_tables_of(self.current_state, super().__call__())

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return tomllib.loads(file_path.read_text("utf-8-sig"))


def _without_tables_of(stronger: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in TABLES or key not in stronger}
