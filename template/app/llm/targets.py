"""Targets: rows of the model table, resolved once at the start into an adapter, an address and a key."""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from app.config import ModelEntry, SettingsError
from app.errors import ProviderNotConfigured
from app.llm.vendors import ANTHROPIC, LITELLM_KEYS, VENDORS, Vendor
from app.network import ADDRESS, HOST, proxy_for

BOUNDS = ("max_tokens", "max_completion_tokens")
"""The names that the bound of an answer has had in OpenAI's API. A request has one of them."""

OPENAIS_HOST = re.compile(r"https://[^/:]+\.openai(\.azure)?\.com(?=[/:]|$)")
"""Addresses of OpenAI and of Azure that stand in a row, such as a region's."""

AdapterName = Literal["direct", "litellm", "demo", "own"]


@dataclass(frozen=True, slots=True)
class Target:
    """One model of the table, ready to be called.

    Attributes:
        name: its public name.
        provider: LiteLLM's name of its provider.
        model: the provider's name of the model.
        adapter: how it is reached.
        entry: its row of the table.
        vendor: what its vendor names otherwise; None leaves requests as they are.
        api_base: address of the API; None leaves that to LiteLLM.
        key: our key at the provider; None sends none.
        missing: the environment variable that must be set before the model can be called.
        proxy: the HTTP proxy between us and the provider.
        key_header: the header that the key is sent in; in `Authorization`, as a Bearer token.
        speaks: the dialects that are passed through to it, besides chat.
        native: how it is reached in these; None is as for chat.
        secrets: keys of all models, whatever their variables are called: any provider may quote any.
    """

    name: str
    provider: str
    model: str
    adapter: AdapterName
    entry: ModelEntry
    vendor: Vendor | None = None
    api_base: str | None = None
    key: str | None = field(default=None, repr=False)
    missing: str | None = None
    proxy: str | None = field(default=None, repr=False)
    key_header: str = "Authorization"
    speaks: frozenset[str] = frozenset()
    native: "Target | None" = None
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    def fields(self, sent: dict[str, Any], known: Container[str] | None = None) -> dict[str, Any]:
        """Return the fields that the provider gets: the request's, and those of the row's `defaults` that it left out.

        Args:
            sent: the request's fields.
            known: the names of defaults that this provider accepts; None means all.
        """
        fields = {**self.entry.defaults, **sent, "model": self.model}
        for name in self.entry.defaults.keys() - sent.keys() if self.entry.defaults else ():
            if (known is not None and name not in known) or (name in BOUNDS and any(bound in sent for bound in BOUNDS)):
                del fields[name]
        return self.in_vendors_terms(fields)

    def exceeded(self, sent: dict[str, Any]) -> str | None:
        """Return the field by which a chat request asks for more tokens than this model's bound, if there is one."""
        if (limit := self.entry.max_tokens_limit) and "messages" in sent:
            for name in BOUNDS:
                if sent.get(name, 0) > limit:
                    return name
        return None

    def in_vendors_terms(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return a request's fields by the names that the vendor knows, without those that it refuses."""
        if self.vendor is None or not (self.vendor.renames or self.vendor.refuses):
            return fields
        renames, refuses = self.vendor.renames, self.vendor.refuses
        return {renames.get(name, name): value for name, value in fields.items() if name not in refuses}

    def bounded(self) -> "Target":
        """Return this target with `max_tokens_limit` as the bound of each answer for which a request names none."""
        entry, vendor, name = self.entry, self.vendor, "max_tokens"  # which every server knows
        if any(bound in entry.defaults for bound in BOUNDS):
            return self
        if vendor and (entry.api_base is None or vendor.base is None or OPENAIS_HOST.match(entry.api_base)):
            name = vendor.bound
        defaults = {**entry.defaults, name: entry.max_tokens_limit}
        return replace(self, entry=entry.model_copy(update={"defaults": defaults}))

    def with_secrets(self, secrets: frozenset[str]) -> "Target":
        """Return this target with the keys that are removed from what its provider says."""
        return replace(self, secrets=secrets, native=self.native and self.native.with_secrets(secrets))

    def check_configured(self) -> None:
        """Raise ProviderNotConfigured, which names the variable, if this model can't be called."""
        if self.missing:
            raise ProviderNotConfigured(f"Model {self.name!r} is not configured here: {self.missing} is not set.")


def resolve(name: str, entry: ModelEntry, environ: Mapping[str, str]) -> Target:
    """Return the target for a row of the model table.

    Args:
        name: the public name.
        entry: the row.
        environ: the environment: keys and addresses are read from it, under their vendors' names.

    Raises:
        SettingsError: the row can't work.
    """
    target = _for_chat(name, entry, environ)
    native = _anthropic(target, environ) if target.provider == "anthropic" and target.adapter == "litellm" else None
    if native is None and target.adapter != "direct":
        if entry.speaks:
            raise SettingsError(f"models.{name}: only a model that is called directly can have speaks")
        return target
    vendor = ANTHROPIC if native else target.vendor
    is_vendors_own = vendor and (native or target).api_base == (vendor.base or target.api_base or "").rstrip("/")
    default = vendor.speaks if vendor and (native or (is_vendors_own and entry.api_base is None)) else frozenset()
    speaks = default if entry.speaks is None else frozenset(entry.speaks)
    return replace(target, speaks=speaks, native=native)


def _anthropic(target: Target, environ: Mapping[str, str]) -> Target:
    """Return how an Anthropic model is reached in Anthropic's own dialect."""
    entry = target.entry
    base = (entry.api_base or _address(environ, ANTHROPIC.bases) or ANTHROPIC.base or "").rstrip("/")
    base = base if base.endswith(ANTHROPIC.path) else base + ANTHROPIC.path
    key, header = _key(environ, [entry.api_key_env or ""]), "x-api-key"
    if entry.api_base is None and not entry.api_key_env:
        key = _key(environ, ANTHROPIC.keys)
        if key is None and (key := _key(environ, ["ANTHROPIC_AUTH_TOKEN"])):
            header = "Authorization"
    model = target.model.partition("/")[2]
    proxy = _proxy(base)
    return replace(target, model=model, adapter="direct", api_base=base, key=key, proxy=proxy, key_header=header)


def _for_chat(name: str, entry: ModelEntry, environ: Mapping[str, str]) -> Target:
    """Return the target for a row, as far as chat needs it."""
    provider, _, model = entry.upstream.partition("/")
    if not model:
        provider, model = "openai", entry.upstream
    if provider == "demo":
        return Target(name, provider, model, "demo", entry)
    if provider == "own":
        return Target(name, provider, model, "own", entry)
    key, missing = None, None
    if entry.api_key_env:
        key = _key(environ, [entry.api_key_env])
        missing = None if key else entry.api_key_env
    vendor = VENDORS.get(provider)
    is_direct = vendor is not None and (provider != "azure" or bool(entry.api_key_env or _key(environ, vendor.keys)))
    if (entry.protocol or ("openai" if is_direct else "litellm")) == "litellm":
        return _via_litellm(name, entry, provider, environ, key, missing)
    if vendor is None:
        if provider not in LITELLM_KEYS:
            model = entry.upstream  # in "meta-llama/Llama-3.1-8B", the first part is the model's owner, not a provider
        if entry.api_base is None:
            raise SettingsError(f'models.{name}: protocol = "openai" for {entry.upstream!r} needs api_base')
        base = entry.api_base.rstrip("/")
        return Target(name, provider, model, "direct", entry, None, base, key, missing, _proxy(base))
    api_base = entry.api_base or _address(environ, vendor.bases) or vendor.base
    if api_base is None:
        missing = vendor.bases[0]
    if entry.api_base is None and not entry.api_key_env:
        key = _key(environ, vendor.keys)
        if vendor.needs_key and not key and api_base == vendor.base:
            missing = vendor.keys[0]
    base = (api_base or "").rstrip("/")
    if not base.endswith(vendor.path):
        base += vendor.path
    return Target(name, provider, model, "direct", entry, vendor, base, key, missing, _proxy(base))


def _via_litellm(
    name: str, entry: ModelEntry, provider: str, environ: Mapping[str, str], key: str | None, missing: str | None
) -> Target:
    upstream = entry.upstream if "/" in entry.upstream else f"openai/{entry.upstream}"
    api_base = entry.api_base
    address = _address(environ, (f"{provider.upper()}_BASE_URL", f"{provider.upper()}_API_BASE"))
    if entry.api_key_env:
        pass
    elif api_base:
        key = "none"  # else LiteLLM would send the vendor's own key there
    elif provider == "openai":
        api_base, key = address, _key(environ, ["OPENAI_API_KEY"])
        missing = None if key or api_base else "OPENAI_API_KEY"
        key = key or "none"
    elif not _key(environ, LITELLM_KEYS.get(provider, ())):
        missing = next(iter(LITELLM_KEYS.get(provider, ())), None)
    return Target(name, provider, upstream, "litellm", entry, None, api_base, key, missing, _proxy(api_base or ""))


def _key(environ: Mapping[str, str], names: Iterable[str]) -> str | None:
    """Return the key in the first of these variables that is set.

    Raises:
        SettingsError: it can't be sent in a header.
    """
    for name in names:
        if key := _first(environ, [name]):
            if not (key.isascii() and key.isprintable()):
                raise SettingsError(f"{name} has a character in it that no key has, such as a line break")
            return key
    return None


def _first(environ: Mapping[str, str], names: Iterable[str]) -> str | None:
    """Return the value of the first of these variables that is set and not empty, without surrounding blanks."""
    return next((value for name in names if (value := environ.get(name, "").strip())), None)


def _address(environ: Mapping[str, str], names: Iterable[str]) -> str | None:
    """Return the address in the first of these variables that is set.

    Raises:
        SettingsError: one of them is no address.
    """
    for name in names:
        if (value := _first(environ, [name])) and not re.fullmatch(ADDRESS, value):
            raise SettingsError(f"{name} is no address such as https://host/v1, without a user or a password")
    return _first(environ, names)


def _proxy(address: str) -> str | None:
    """Return the proxy that leads to an address, or raise SettingsError where it is none that can be used."""
    proxy = proxy_for(address)
    if proxy and not re.fullmatch(rf"https?://([^\s/@]+@)?{HOST}/?", proxy):
        raise SettingsError(f"{address.partition(':')[0].upper()}_PROXY is no address of an HTTP proxy")
    return proxy
