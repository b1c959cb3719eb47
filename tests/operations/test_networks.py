"""Where companies run it: behind an HTTP proxy, with a private CA, set from a ConfigMap, on a port that is given."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operations.forward_proxy import ForwardProxy, PrivateCA
from operations.servers import TEXT, Call, Process, Stub, text_of

KEY = "sk-app-test"
CALLERS = json.dumps({"test": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}})


class Company:
    """The service in a company's network."""

    def __init__(self, process: Any, proxy: ForwardProxy) -> None:
        self.process = process
        self.proxy = proxy

    def ask(self, model: str, *, stream: bool) -> list[str]:
        """Ask a model, which must answer; return the hosts that the proxy was asked for meanwhile."""
        self.proxy.asked.clear()
        with Call(self.process.url, KEY, model=model, stream=stream) as call:
            assert (text_of(list(call.events)) if stream else call.json["content"]) == TEXT
        return list(self.proxy.asked)


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    ca = PrivateCA(tmp_path_factory.mktemp("ca"))
    with Stub() as stub, ForwardProxy(stub.url, ca) as proxy:
        ways = {
            "direct": {"upstream": "openai/gpt-4o"},
            "litellm": {"upstream": "openai/gpt-4o", "protocol": "litellm"},
            "anthropic": {"upstream": "anthropic/claude-sonnet-4-5"},
        }
        bases = {"https": "https://{}.secure.internal", "http": "http://{}.plain.internal", "exempt": stub.url}
        models = {
            f"{way}-{kind}": entry | {"api_base": base.format(way) + ("" if way == "anthropic" else "/v1")}
            for way, entry in ways.items()
            for kind, base in bases.items()
        }
        env = {
            "APP_MODELS": json.dumps(models),
            "APP_DEFAULT_MODEL": "direct-https",
            "APP_CALLERS": CALLERS,
            "APP_RETRIES": "0",
            "HTTPS_PROXY": proxy.url,
            "HTTP_PROXY": proxy.url,
            "NO_PROXY": "127.0.0.1",
            "SSL_CERT_FILE": str(ca.bundle),
        }
        with Process(env=env) as process:
            process.wait_until_ready()
            yield Company(process, proxy)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("way", ["direct", "litellm", "anthropic"])
def test_a_provider_is_reached_through_a_proxy_and_a_private_ca(company: Company, way: str, stream: bool) -> None:
    asked = company.ask(f"{way}-https", stream=stream)
    assert set(asked) <= {f"{way}.secure.internal:443"}
    assert asked or stream, "a kept connection is used again"


@pytest.mark.parametrize("way", ["direct", "litellm", "anthropic"])
def test_a_plain_provider_is_reached_through_a_proxy(company: Company, way: str) -> None:
    assert company.ask(f"{way}-http", stream=False) == [f"{way}.plain.internal"]


@pytest.mark.parametrize("way", ["direct", "litellm", "anthropic"])
def test_a_host_that_is_exempt_is_reached_without_the_proxy(company: Company, way: str) -> None:
    assert company.ask(f"{way}-exempt", stream=False) == []


def test_a_certificate_that_nobody_vouches_for_is_refused_and_told_in_the_log(tmp_path: Path) -> None:
    with Stub() as stub, ForwardProxy(stub.url, PrivateCA(tmp_path)) as proxy:
        models = {"direct": {"upstream": "openai/gpt-4o", "api_base": "https://llm.internal/v1"}}
        env = {
            "APP_MODELS": json.dumps(models),
            "APP_DEFAULT_MODEL": "direct",
            "APP_CALLERS": CALLERS,
            "APP_RETRIES": "0",
            "APP_LOG_FORMAT": "json",
            "HTTPS_PROXY": proxy.url,
        }
        with Process(env=env) as process:
            with Call(process.url, KEY, model="direct") as call:
                assert (call.status, call.json["error"]["code"]) == (502, "provider_error")
            process.terminate()
            process.wait(30)
        assert stub.requests == []
    lines = [json.loads(line) for line in process.lines]
    [line] = [line for line in lines if line["event"] == "provider can't be reached"]
    assert line["reason"] == "SSLCertVerificationError"


def test_settings_come_from_a_config_map(tmp_path: Path) -> None:
    """Kubernetes mounts one as links: it then swaps all of its files at once."""
    version, current = tmp_path / "..2026_11_24", tmp_path / "..data"
    version.mkdir()
    (version / "settings.toml").write_text(
        'name = "From a ConfigMap"\ndefault_model = "demo"\n[models.demo]\nupstream = "demo/echo"\n'
    )
    current.symlink_to(version.name)
    (tmp_path / "settings.toml").symlink_to("..data/settings.toml")
    with Process(settings=tmp_path / "settings.toml", env={"HOME": os.devnull}) as process:
        with Call(process.url, "none", model="demo") as call:
            assert call.status == 200
        assert process.lines[0].startswith("From a ConfigMap: ")
