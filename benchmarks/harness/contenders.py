"""Who is measured: how each is started, and what a request to it looks like."""

import hashlib
import json
from dataclasses import dataclass, field

KEY = "a-key-of-no-value"
CALLERS = {
    "bench": {
        "key_sha256": hashlib.sha256(KEY.encode()).hexdigest(),
        "requests_per_minute": 10_000_000,
        "tokens_per_minute": 1_000_000_000_000,
    }
}


@dataclass(frozen=True)
class Contender:
    """A server under test. `{port}` and `{upstream}` stand for what is known only when it is started."""

    name: str
    title: str
    environment: str
    arguments: tuple[str, ...]
    variables: dict[str, str]
    model: str = "gpt-4o"
    headers: dict[str, str] = field(default_factory=dict)
    optional: bool = False
    """A peer that is measured on request, and whose failure is reported instead of ending the run."""
    paced: bool = False
    """Measured with many open streams and large bodies too."""
    streams: bool = True

    def command(self, program: str, **values: str) -> list[str]:
        return [program, *(fill(argument, values) for argument in self.arguments)]

    def process_environment(self, **values: str) -> dict[str, str]:
        return {name: fill(value, values) for name, value in self.variables.items()}


def fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def bearer(key: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ours(
    name: str,
    title: str,
    entry: dict[str, str],
    *,
    model: str = "gpt-4o",
    paced: bool = False,
    streams: bool = True,
) -> Contender:
    """Our generated project with one model, and with all that it has for production switched on."""
    return Contender(
        name,
        title,
        "project",
        ("-m", "app"),
        {
            "APP_HOST": "127.0.0.1",
            "APP_PORT": "{port}",
            "APP_LOG_FORMAT": "json",
            "APP_MODELS": json.dumps({model: entry}),
            "APP_DEFAULT_MODEL": model,
            "APP_CALLERS": json.dumps(CALLERS),
        },
        model,
        bearer(),
        paced=paced,
        streams=streams,
    )


LITELLM_QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
"""Without the first, importing LiteLLM fetches a price list over the network."""

FLOOR = Contender(
    "floor",
    "ASGI byte proxy (the floor)",
    "floor",
    ("floor.py",),
    {"PORT": "{port}", "UPSTREAM": "{upstream}"},
    headers=bearer(),
    paced=True,
)
OURS = ours("ours", "this backend, direct", {"upstream": "openai/gpt-4o", "api_base": "{upstream}/v1"}, paced=True)
OURS_LITELLM = ours(
    "ours_litellm",
    "this backend, via LiteLLM",
    {"upstream": "openai/gpt-4o", "api_base": "{upstream}/v1", "protocol": "litellm"},
)
# The demo model pauses between its chunks, so a burst of them can't be had.
OURS_DEMO = ours("ours_demo", "this backend, demo model", {"upstream": "demo/echo"}, model="demo", streams=False)
PLAIN_LITELLM = Contender(
    "plain_litellm",
    "FastAPI + litellm.acompletion",
    "plain_litellm",
    ("plain_litellm.py",),
    {"PORT": "{port}", "UPSTREAM": "{upstream}", "OPENAI_API_KEY": KEY} | LITELLM_QUIET,
)
OPENAI_SDK = Contender(
    "openai_sdk",
    "FastAPI + OpenAI's SDK",
    "openai_sdk",
    ("openai_sdk.py",),
    {"PORT": "{port}", "UPSTREAM": "{upstream}", "OPENAI_API_KEY": KEY},
)
LITELLM_PROXY = Contender(
    "litellm_proxy",
    "LiteLLM's proxy, one worker",
    "litellm_proxy",
    (
        "-c",
        "from litellm import run_server; run_server()",
        "--config",
        "litellm_proxy.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--num_workers",
        "1",
    ),
    {"UPSTREAM_V1": "{upstream}/v1", "OPENAI_API_KEY": KEY, "CALLER_KEY": f"sk-{KEY}"} | LITELLM_QUIET,
    headers=bearer(f"sk-{KEY}"),
    optional=True,
)
PORTKEY = Contender(
    "portkey",
    "Portkey's gateway",
    "portkey",
    ("node_modules/@portkey-ai/gateway/build/start-server.js", "--port={port}", "--headless"),
    {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1", "NODE_ENV": "production"},
    headers=bearer() | {"x-portkey-provider": "openai", "x-portkey-custom-host": "{upstream}/v1"},
    optional=True,
)
CONTENDERS = (FLOOR, OURS, OURS_LITELLM, OURS_DEMO, PLAIN_LITELLM, OPENAI_SDK, LITELLM_PROXY, PORTKEY)
