"""A provider's key goes to its own provider and to nobody else."""

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from app.config import ModelEntry, Settings
from app.errors import AppError, OwnCallError
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from app.llm.vendors import LITELLM_KEYS, VENDORS
from tests.stub import Behaviour, Stub

HELLO: Any = [{"role": "user", "content": "Hello"}]
CANARY = "sk-canary-0123456789"
VENDOR_VARIABLES = {key for vendor in VENDORS.values() for key in vendor.keys} | {
    name for names in LITELLM_KEYS.values() for name in names
}


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every vendor's key is there, and is the canary."""
    for name in VENDOR_VARIABLES:
        monkeypatch.setenv(name, CANARY)


def ask(table: dict[str, Any], **fields: Any) -> None:
    """Ask each model for an answer, a stream and embeddings, whatever comes of it."""

    async def ask_all() -> None:
        entries = {name: ModelEntry(**entry) for name, entry in table.items()}
        settings = Settings(models=entries, default_model=next(iter(entries)), retries=0)
        async with Upstreams(settings) as upstreams:
            llm = LLMClient(upstreams)
            for name in entries:
                with contextlib.suppress(AppError, OwnCallError):
                    await llm.complete(model=name, messages=HELLO, **fields)
                with contextlib.suppress(AppError, OwnCallError):
                    async for _ in llm.stream(model=name, messages=HELLO, **fields):
                        pass
                with contextlib.suppress(AppError, OwnCallError):
                    await llm.embed("Hello", model=name, **fields)

    asyncio.run(ask_all())


def keys_of(stub: Stub, path: str = "/") -> set[str]:
    """Return the keys that a provider was sent, in whichever header; "" stands for a request without one."""
    found = set()
    for request in stub.requests:
        if request.path.startswith(path):
            assert CANARY not in f"{request.path} {request.body}"
            names = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
            sent = [request.headers[name].removeprefix("Bearer ") for name in names if name in request.headers]
            found.update(sent or [""])
            assert CANARY in sent or CANARY not in str(request.headers)
    return found


@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize("provider", VENDORS)
def test_no_vendor_key_goes_to_the_api_base_of_a_direct_model(stub: Stub, provider: str) -> None:
    ask({"m": {"upstream": f"{provider}/m", "api_base": f"{stub.url}/v1"}})
    assert keys_of(stub) == {""}


@pytest.mark.usefixtures("canaries")
def test_no_vendor_key_goes_to_the_api_base_of_a_model_via_litellm(stub: Stub) -> None:
    providers = ["openai", *LITELLM_KEYS]
    ask({p: {"upstream": f"{p}/m", "api_base": f"{stub.url}/{p}", "protocol": "litellm"} for p in providers})
    for provider in providers:
        assert keys_of(stub, f"/{provider}") == {"none"}, provider


@pytest.mark.parametrize("protocol", ["openai", "litellm"])
def test_openais_key_goes_to_openai_base_url_and_to_no_api_base(
    stub: Stub, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{stub.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "openais-key")
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
    with Stub() as other:
        ask(
            {
                "at OpenAI": {"upstream": "openai/gpt-4o", "protocol": protocol},
                "elsewhere": {"upstream": "openai/gpt-4o", "protocol": protocol, "api_base": f"{other.url}/v1"},
            }
        )
        assert keys_of(stub) == {"openais-key"}
        assert keys_of(other) == {"none" if protocol == "litellm" else ""}


@pytest.mark.parametrize("protocol", ["openai", "litellm"])
def test_an_entry_with_a_key_of_its_own_does_without_the_vendors(
    stub: Stub, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{stub.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("OWN_KEY", "own-key")
    ask({"m": {"upstream": "openai/m", "protocol": protocol, "api_key_env": "OWN_KEY"}})
    assert keys_of(stub) == {"own-key"}


def test_the_key_of_an_entry_goes_to_its_api_base_only(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    table: dict[str, Any] = {}
    for upstream, protocol in [("openai/m", "openai"), ("openai/m", "litellm"), ("anthropic/m", "litellm")]:
        name = f"{upstream}-{protocol}".upper().replace("/", "-")
        monkeypatch.setenv(name, f"key-of-{name}")
        table[name] = {
            "upstream": upstream,
            "protocol": protocol,
            "api_base": f"{stub.url}/{name}",
            "api_key_env": name,
        }
    ask(table)
    for name in table:
        assert keys_of(stub, f"/{name}") == {f"key-of-{name}"}


@pytest.mark.parametrize("upstream", ["openai/m", "anthropic/m", "gemini/m", "azure/m"])
@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_takes_no_key_to_another_host(
    stub: Stub, upstream: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN_KEY", CANARY)
    entry = {"upstream": upstream, "api_base": f"{stub.url}/v1", "api_key_env": "OWN_KEY"}
    protocols = ["openai", "litellm"] if upstream.startswith("openai/") else ["litellm"]
    with Stub() as other:
        stub.default = Behaviour(status=status, headers={"location": f"{other.url}/v1/chat/completions"})
        ask({protocol: entry | {"protocol": protocol} for protocol in protocols})
        assert keys_of(stub) == {CANARY}
        assert other.requests == []


@pytest.mark.parametrize("variable", ["LITELLM_HTTP2", "DISABLE_AIOHTTP_TRANSPORT"])
def test_a_redirect_takes_no_key_whatever_transport_litellm_is_told_to_use(
    stub: Stub, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "True")
    monkeypatch.setenv("OWN_KEY", CANARY)
    with Stub() as other:
        stub.default = Behaviour(status=307, headers={"location": f"{other.url}/v1/messages"})
        ask({"m": {"upstream": "anthropic/m", "api_base": stub.url, "api_key_env": "OWN_KEY"}})
        assert keys_of(stub) == {CANARY}
        assert other.requests == []


@pytest.mark.parametrize(
    "upstream", ["openai/llama-3-8b", "openai/command-r", "deepseek/deepseek-chat", "anthropic/claude-opus-4-5"]
)
def test_litellm_asks_nobody_but_the_provider(stub: Stub, upstream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without usage from the provider it counts tokens itself, and for that would fetch a tokenizer."""
    asked_for = set[str]()
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked_for.add(str(host))
        return resolve("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    stub.default = Behaviour(usage=False)
    api_base = stub.url if upstream.startswith("anthropic/") else f"{stub.url}/v1"
    json_object = {"type": "json_object"}
    ask({"m": {"upstream": upstream, "api_base": api_base, "protocol": "litellm"}}, response_format=json_object)
    assert len(stub.requests) >= 2
    assert asked_for <= {"127.0.0.1"}


@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "extra_headers", "custom_llm_provider"])
def test_no_request_leads_a_key_to_another_host(stub: Stub, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", "own-key")
    entry = {"upstream": "openai/m", "api_base": f"{stub.url}/v1", "api_key_env": "OWN_KEY"}
    with Stub() as other:
        ask({p: entry | {"protocol": p} for p in ("openai", "litellm")}, **{field: f"{other.url}/v1"})
        assert other.requests == []
    assert keys_of(stub) == {"own-key"}
