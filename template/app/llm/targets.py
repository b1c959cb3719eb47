"""Targets: rows of the model table, resolved once at the start into an adapter, an address and a key."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.config import ModelEntry, SettingsError
from app.errors import ProviderNotConfigured
from app.network import proxy_for

AdapterName = Literal["direct", "litellm", "demo"]


@dataclass(frozen=True)
class Vendor:
    """The address of an OpenAI-compatible provider, and the variables that hold its key and another address."""

    key: str
    base: str
    default_base: str | None = None
    needs_key: bool = False


DIRECT = {
    "openai": Vendor("OPENAI_API_KEY", "OPENAI_BASE_URL", "https://api.openai.com/v1", needs_key=True),
    "hosted_vllm": Vendor("HOSTED_VLLM_API_KEY", "HOSTED_VLLM_API_BASE"),
    "ollama": Vendor("OLLAMA_API_KEY", "OLLAMA_API_BASE", "http://localhost:11434"),
    "ollama_chat": Vendor("OLLAMA_API_KEY", "OLLAMA_API_BASE", "http://localhost:11434"),
    "lm_studio": Vendor("LM_STUDIO_API_KEY", "LM_STUDIO_API_BASE", "http://localhost:1234"),
}

SINGLE_KEY = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "cerebras": ("CEREBRAS_API_KEY",),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "fireworks_ai": ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY", "FIREWORKSAI_API_KEY", "FIREWORKS_AI_TOKEN"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "mistral": ("MISTRAL_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY", "OR_API_KEY"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_TOKEN"),
    "xai": ("XAI_API_KEY",),
}
"""Providers that need one key, which LiteLLM reads from one of these variables.

Others may have ambient credentials, so whether they are configured is not checked here."""


@dataclass(frozen=True, slots=True)
class Target:
    """One model of the table, ready to be called.

    Attributes:
        name: its public name.
        provider: LiteLLM's name of its provider.
        model: the provider's name of the model.
        adapter: how it is reached.
        entry: its row of the table.
        api_base: address of the API; None leaves that to LiteLLM.
        key: our key at the provider; None sends none.
        missing: the environment variable that must be set before the model can be called.
        proxy: the HTTP proxy between us and the provider.
    """

    name: str
    provider: str
    model: str
    adapter: AdapterName
    entry: ModelEntry
    api_base: str | None = None
    key: str | None = field(default=None, repr=False)
    missing: str | None = None
    proxy: str | None = field(default=None, repr=False)

    def fields(self, sent: dict[str, Any], known: Container[str] | None = None) -> dict[str, Any]:
        """Return the fields that the provider gets: the request's, and those of the row's `defaults` that it left out.

        Args:
            sent: the request's fields.
            known: the names of defaults that this provider accepts; None means all.
        """
        fields = {**self.entry.defaults, **sent, "model": self.model}
        for name in self.entry.defaults.keys() - sent.keys():
            if (known is not None and name not in known) or (name == "max_tokens" and "max_completion_tokens" in sent):
                del fields[name]
        return fields

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
    provider, _, model = entry.upstream.partition("/")
    if not model:
        provider, model = "openai", entry.upstream
    if provider == "demo":
        return Target(name, provider, model, "demo", entry)
    if (entry.protocol or ("openai" if provider in DIRECT else "litellm")) == "litellm":
        return _via_litellm(name, entry, provider, environ)
    if provider not in DIRECT and provider not in SINGLE_KEY:
        model = entry.upstream  # in "meta-llama/Llama-3.1-8B", the first part is the model's owner, not a provider
    vendor = DIRECT.get(provider)
    api_base, key, missing = entry.api_base, None, None
    if entry.api_key_env:
        key = environ.get(entry.api_key_env)
        missing = None if key else entry.api_key_env
    if api_base is None:
        if vendor is None:
            raise SettingsError(f'models.{name}: protocol = "openai" for {entry.upstream!r} needs api_base')
        api_base = environ.get(vendor.base) or vendor.default_base
        if api_base is None:
            missing = vendor.base
        if not entry.api_key_env:
            key = environ.get(vendor.key)
            if vendor.needs_key and not key and api_base == vendor.default_base:
                missing = vendor.key
    base = (api_base or "").rstrip("/")
    if vendor and provider != "openai" and not base.endswith("/v1"):
        base += "/v1"
    return Target(name, provider, model, "direct", entry, base, key or None, missing, proxy_for(base))


def _via_litellm(name: str, entry: ModelEntry, provider: str, environ: Mapping[str, str]) -> Target:
    upstream = entry.upstream if "/" in entry.upstream else f"openai/{entry.upstream}"
    api_base, key, missing = entry.api_base, None, None
    if entry.api_key_env:
        key = environ.get(entry.api_key_env)
        missing = None if key else entry.api_key_env
    elif api_base:
        key = "none"  # LiteLLM would take the vendor's own key from the environment otherwise
    elif provider == "openai":
        api_base, key = environ.get("OPENAI_BASE_URL"), environ.get("OPENAI_API_KEY")
        missing = None if key or api_base else "OPENAI_API_KEY"
        key = key or "none"
    elif not any(environ.get(variable) for variable in SINGLE_KEY.get(provider, ())):
        missing = next(iter(SINGLE_KEY.get(provider, ())), None)
    return Target(name, provider, upstream, "litellm", entry, api_base, key or None, missing)
