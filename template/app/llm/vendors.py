"""Vendors whose API speaks OpenAI's protocol: addresses, keys, and what each of them names otherwise.

Source: the vendors' API references, and LiteLLM's table of providers, which a test of the template compares with this.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_TOKENS: Mapping[str, str] = {"max_completion_tokens": "max_tokens"}
"""For vendors that know only the older of the two names."""


@dataclass(frozen=True, slots=True)
class Vendor:
    """Where an OpenAI-compatible vendor is, and what it wants.

    Attributes:
        keys: environment variables that may hold the key; the first one that is set counts.
        base: address of the API; None if it has to be configured.
        bases: environment variables that may hold another address.
        path: what an address from a variable or a row must end with; it is added where it is missing.
        needs_key: whether the vendor's own address refuses requests without a key.
        renames: fields of OpenAI's that the vendor calls otherwise.
        refuses: fields of ours that the vendor refuses, and that nobody misses.
        speaks: the dialects, besides chat, that the vendor's own address speaks.
        bound: the name of an answer's bound that all its models know.
    """

    keys: tuple[str, ...]
    base: str | None = None
    bases: tuple[str, ...] = ()
    path: str = ""
    needs_key: bool = True
    renames: Mapping[str, str] = field(default_factory=dict)
    refuses: frozenset[str] = frozenset()
    speaks: frozenset[str] = frozenset()
    bound: str = "max_tokens"


def _vendor(prefix: str, base: str | None, *, more_keys: tuple[str, ...] = (), **more: Any) -> Vendor:
    """Return a vendor whose variables are called as most are: `PREFIX_API_KEY` and `PREFIX_API_BASE`."""
    return Vendor((f"{prefix}_API_KEY", *more_keys), base, (f"{prefix}_API_BASE",), **more)


RESPONSES = frozenset({"responses"})
OPENAIS: Mapping[str, Any] = {"speaks": RESPONSES, "bound": "max_completion_tokens"}
"""What OpenAI's models have in common, wherever they run. Those that reason refuse `max_tokens`."""
NO_STREAM_OPTIONS = frozenset({"stream_options"})
"""Of vendors that send a stream's usage without being asked, and refuse to be asked."""

VENDORS: Mapping[str, Vendor] = {
    "openai": Vendor(("OPENAI_API_KEY",), "https://api.openai.com/v1", ("OPENAI_BASE_URL",), **OPENAIS),
    "azure": _vendor("AZURE", None, path="/openai/v1", **OPENAIS),
    "cerebras": _vendor("CEREBRAS", "https://api.cerebras.ai/v1", renames=MAX_TOKENS, refuses=NO_STREAM_OPTIONS),
    "dashscope": _vendor("DASHSCOPE", "https://dashscope.aliyuncs.com/compatible-mode/v1"),
    "deepseek": _vendor("DEEPSEEK", "https://api.deepseek.com/beta"),
    "fireworks_ai": _vendor(
        "FIREWORKS",
        "https://api.fireworks.ai/inference/v1",
        more_keys=("FIREWORKS_AI_API_KEY", "FIREWORKSAI_API_KEY", "FIREWORKS_AI_TOKEN"),
        renames=MAX_TOKENS,
    ),
    "gemini": _vendor(
        "GEMINI", "https://generativelanguage.googleapis.com/v1beta/openai", more_keys=("GOOGLE_API_KEY",)
    ),
    "github": _vendor("GITHUB", "https://models.inference.ai.azure.com", renames=MAX_TOKENS),
    "groq": _vendor("GROQ", "https://api.groq.com/openai/v1", renames=MAX_TOKENS),
    "mistral": _vendor(
        "MISTRAL", "https://api.mistral.ai/v1", renames={**MAX_TOKENS, "seed": "random_seed"}, refuses=NO_STREAM_OPTIONS
    ),
    "moonshot": _vendor("MOONSHOT", "https://api.moonshot.ai/v1", renames=MAX_TOKENS),
    "nvidia_nim": _vendor("NVIDIA_NIM", "https://integrate.api.nvidia.com/v1", renames=MAX_TOKENS),
    "openrouter": _vendor("OPENROUTER", "https://openrouter.ai/api/v1", more_keys=("OR_API_KEY",)),
    "perplexity": Vendor(
        ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
        "https://api.perplexity.ai",
        ("PERPLEXITY_API_BASE",),
        refuses=NO_STREAM_OPTIONS,
    ),
    "sambanova": _vendor("SAMBANOVA", "https://api.sambanova.ai/v1", renames=MAX_TOKENS),
    "together_ai": Vendor(
        ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY", "TOGETHER_AI_TOKEN"),
        "https://api.together.ai/v1",
        ("TOGETHER_AI_API_BASE",),
    ),
    "xai": _vendor("XAI", "https://api.x.ai/v1", renames=MAX_TOKENS, speaks=RESPONSES),
    # Servers of one's own.
    "hosted_vllm": _vendor("HOSTED_VLLM", None, path="/v1", needs_key=False),
    "lm_studio": _vendor("LM_STUDIO", "http://localhost:1234", path="/v1", needs_key=False),
    "ollama": _vendor("OLLAMA", "http://localhost:11434", path="/v1", needs_key=False),
    "ollama_chat": _vendor("OLLAMA", "http://localhost:11434", path="/v1", needs_key=False),
}

ANTHROPIC = Vendor(
    ("ANTHROPIC_API_KEY",),
    "https://api.anthropic.com",
    ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL"),
    path="/v1",
    speaks=frozenset({"messages"}),
)
"""Reached through LiteLLM for chat; its own dialect is passed through."""

LITELLM_KEYS: Mapping[str, tuple[str, ...]] = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    **{name: vendor.keys for name, vendor in VENDORS.items() if vendor.needs_key and vendor.base},
}
"""Providers that need one key, which LiteLLM reads from one of these variables.

Others may have ambient credentials, so whether they are configured is not checked here."""
