"""Who is measured: how each is started, and what a request to it looks like."""

import hashlib
import json
from dataclasses import dataclass, field

from harness.requests import Kind

KEY = "a-key-of-no-value"
CALLERS = {
    "bench": {
        "key_sha256": hashlib.sha256(KEY.encode()).hexdigest(),
        "requests_per_minute": 10_000_000,
        "tokens_per_minute": 1_000_000_000_000,
    }
}
PROJECTS = ("project", "project_own", "project_database")
"""Environments that are our generated project, in its variants."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A server under test. `{port}`, `{upstream}` and `{valkey}` stand for addresses that are known when it is started.

    Attributes:
        name: of its measurements in results.json.
        title: as the report names it.
        environment: what it is installed in; see harness.environments.build.
        arguments: of the environment's program.
        variables: its environment variables, besides a few of the system's.
        kind: what it is asked.
        slow: a peer that takes minutes, measured on request.
        paced: measured with many open streams and large bodies too.
        streams: whether it streams from the upstream.
        clients: that ask at the same time: enough that a server always has something to do, and few enough that a turn
            does not take seconds.
    """

    name: str
    title: str
    environment: str
    arguments: tuple[str, ...]
    variables: dict[str, str]
    kind: Kind
    slow: bool = False
    clients: int = 32
    paced: bool = False
    streams: bool = True

    @property
    def ours(self) -> bool:
        return self.environment in PROJECTS

    @property
    def needed(self) -> bool:
        """Whether the run ends if this one fails; otherwise the report says so."""
        return self.ours or self.name in ("floor", "plain_litellm")

    @property
    def needs_valkey(self) -> bool:
        return any("{valkey}" in value for value in self.variables.values())

    def command(self, program: str, **values: str) -> list[str]:
        return [program, *(fill(argument, values) for argument in self.arguments)]

    def process_environment(self, **values: str) -> dict[str, str]:
        return {name: fill(value, values) for name, value in self.variables.items()}

    def asked(self, upstream: str) -> Kind:
        """What it is asked, with the upstream's address where a header names it."""
        headers = {name: fill(value, {"upstream": upstream}) for name, value in self.kind.headers.items()}
        return Kind(self.kind.dialect, self.kind.model, headers, self.kind.fields)


def fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def bearer(key: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


CHAT = Kind("chat", "gpt-4o", bearer(), {})
RESPONSES = Kind("responses", "gpt-4o", bearer(), {"store": False})
MESSAGES = Kind("messages", "gpt-4o", bearer() | {"anthropic-version": "2023-06-01"}, {})
DIRECT: dict[str, object] = {"upstream": "openai/gpt-4o", "api_base": "{upstream}/v1"}


@dataclass(frozen=True)
class Variant:
    """What differs between the contenders that are our generated project.

    Attributes:
        rows: further rows of the model table.
        variables: further environment variables.
    """

    entry: dict[str, object] = field(default_factory=lambda: DIRECT)
    kind: Kind = CHAT
    rows: dict[str, dict[str, object]] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    environment: str = "project"
    paced: bool = False
    streams: bool = True
    clients: int = 32


def ours(name: str, title: str, variant: Variant) -> Contender:
    """Our generated project with all that it has for production switched on."""
    model = variant.kind.model
    return Contender(
        name,
        f"this backend, {title}",
        variant.environment,
        ("-m", "app"),
        {
            "APP_HOST": "127.0.0.1",
            "APP_PORT": "{port}",
            "APP_LOG_FORMAT": "json",
            "APP_MODELS": json.dumps({model: variant.entry} | variant.rows),
            "APP_DEFAULT_MODEL": model,
            "APP_CALLERS": json.dumps(CALLERS),
        }
        | variant.variables,
        variant.kind,
        paced=variant.paced,
        streams=variant.streams,
        clients=variant.clients,
    )


SLOW_CLIENTS = 8
LITELLM_QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
"""Without the first, importing LiteLLM fetches a price list over the network."""


def endpoint(name: str, title: str, *, clients: int = 32, **variables: str) -> Contender:
    """A server of contenders/."""
    settings = {"PORT": "{port}", "UPSTREAM": "{upstream}"} | variables
    return Contender(name, title, name, (f"{name}.py",), settings, CHAT, paced=name == "floor", clients=clients)


FLOOR = endpoint("floor", "ASGI byte proxy (the floor)")
OURS = ours("ours", "direct", Variant(paced=True))
OURS_LITELLM = ours("ours_litellm", "via LiteLLM", Variant(DIRECT | {"protocol": "litellm"}, clients=SLOW_CLIENTS))
OURS_DEMO = ours(
    "ours_demo",
    "demo model",
    # The demo model makes its chunks itself, at a pace of its own.
    Variant({"upstream": "demo/echo"}, Kind("chat", "demo", bearer(), {}), streams=False),
)
RESPONSES_PASSED = ours(
    "responses_passed", "/v1/responses, passed through", Variant(DIRECT | {"speaks": ["responses"]}, RESPONSES)
)
RESPONSES_BRIDGED = ours(
    "responses_bridged", "/v1/responses, bridged to chat", Variant(DIRECT | {"speaks": []}, RESPONSES)
)
MESSAGES_PASSED = ours(
    "messages_passed", "/v1/messages, passed through", Variant(DIRECT | {"speaks": ["messages"]}, MESSAGES)
)
MESSAGES_BRIDGED = ours("messages_bridged", "/v1/messages, bridged to chat", Variant(DIRECT | {"speaks": []}, MESSAGES))
OURS_OWN = ours(
    "ours_own",
    "own model that calls a direct one",
    Variant(
        {"upstream": "own/assistant"},
        Kind("chat", "assistant", bearer(), {}),
        {"gpt-4o": DIRECT},
        environment="project_own",
    ),
)
OURS_VALKEY = ours(
    "ours_valkey", "limits in a Valkey", Variant(variables={"APP_LIMIT_STORAGE": "async+valkey://{valkey}"})
)
OURS_STORED = ours(
    "ours_stored",
    "/v1/responses, bridged and stored",
    Variant(
        DIRECT | {"speaks": []}, Kind("responses", "gpt-4o", bearer(), {"store": True}), environment="project_database"
    ),
)
PLAIN_LITELLM = endpoint(
    "plain_litellm", "FastAPI + litellm.acompletion", clients=SLOW_CLIENTS, OPENAI_API_KEY=KEY, **LITELLM_QUIET
)
OPENAI_SDK = endpoint("openai_sdk", "FastAPI + OpenAI's SDK", OPENAI_API_KEY=KEY)
SMG = Contender(
    "smg",
    "smg, a router in Rust",
    "smg",
    (
        *("-m", "smg", "launch", "--host", "127.0.0.1", "--port", "{port}", "--worker-urls", "{upstream}"),
        *("--backend", "openai", "--history-backend", "none", "--disable-tokenizer-autoload", "--disable-health-check"),
        *("--disable-load-monitoring", "--log-json"),
    ),
    {},
    CHAT,
)
LITELLM_PROXY = Contender(
    "litellm_proxy",
    "LiteLLM's proxy, one worker",
    "litellm_proxy",
    (
        *("-c", "from litellm import run_server; run_server()", "--config", "litellm_proxy.yaml"),
        *("--host", "127.0.0.1", "--port", "{port}", "--num_workers", "1"),
    ),
    {"UPSTREAM_V1": "{upstream}/v1", "OPENAI_API_KEY": KEY, "CALLER_KEY": f"sk-{KEY}"} | LITELLM_QUIET,
    Kind("chat", "gpt-4o", bearer(f"sk-{KEY}"), {}),
    slow=True,
    clients=SLOW_CLIENTS,
)
PORTKEY = Contender(
    "portkey",
    "Portkey's gateway",
    "portkey",
    ("node_modules/@portkey-ai/gateway/build/start-server.js", "--port={port}", "--headless"),
    {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1", "NODE_ENV": "production"},
    Kind(
        "chat",
        "gpt-4o",
        bearer() | {"x-portkey-provider": "openai", "x-portkey-custom-host": "{upstream}/v1"},
        {},
    ),
    slow=True,
    clients=SLOW_CLIENTS,
)
VARIANTS = (
    RESPONSES_PASSED,
    RESPONSES_BRIDGED,
    MESSAGES_PASSED,
    MESSAGES_BRIDGED,
    OURS_OWN,
    OURS_VALKEY,
    OURS_STORED,
)
"""What else the same backend does, beside a chat with a direct model."""
CONTENDERS = (
    FLOOR,
    OURS,
    SMG,
    OURS_LITELLM,
    OURS_DEMO,
    PLAIN_LITELLM,
    OPENAI_SDK,
    *VARIANTS,
    LITELLM_PROXY,
    PORTKEY,
)
