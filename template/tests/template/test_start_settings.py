"""A value that can't work stops the start in one sentence without the value; what is foreign only warns."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from starlette.testclient import TestClient

from app.access.limits import Limiter
from app.config import ModelEntry, Settings, SettingsError
from app.environment import load_settings
from app.llm.targets import resolve
from app.main import create_app
from app.network import is_loopback, proxy_for
from app.telemetry.metrics import Metrics
from tests.serving import free_port

CANARY = "pw-canary-0123456789"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Give back the process's environment, which the loader changes."""
    with mock.patch.dict(os.environ):
        yield


def refusal() -> str:
    """Make the application; return the sentence that refuses to."""
    with pytest.raises(SettingsError) as caught:
        create_app(load_settings())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def warnings(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Start the application; return its warnings about names."""
    with TestClient(create_app(load_settings(log_format="json"))):
        pass
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line["level"] == "warning" and "APP_" in line["event"]]


# Names.


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("APP_API_DOC", "APP_API_DOCS"),
        ("APP_WORKER", "APP_WORKERS"),
        ("APP_PROT", "APP_PORT"),
        ("APP_TIMEOUTS_IDLE", "APP_TIMEOUTS__IDLE"),
        ("APP_LOGS_LEVELS", "APP_LOG_LEVEL"),
    ],
)
def test_a_name_one_slip_from_a_setting_stops_the_start(name: str, meant: str) -> None:
    os.environ[name] = "1"
    assert refusal() == f"{name} is not a setting; did you mean {meant}?"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("APP_ENV", "prod"), ("APP_PATH", "/srv"), ("APP_HOME", "/srv"), ("APP_KEY", "x"), ("APP_DEBUG", "1")),
        *(("APP_VERSION", "1"), ("APP_MODE", "web"), ("APP_HOSTNAME", "h"), ("APP_METRICS_PATH", "/m")),
        *(("APP_PORT", "tcp://10.0.0.1:80"), ("APP_SERVICE_HOST", "10.0.0.1"), ("APP_SERVICE_PORT", "80")),
        *(("APP_PORT_80_TCP_ADDR", "10.0.0.1"), ("APP_MAX_IN_FLIGHT_PORT", "tcp://10.0.0.1:80")),
    ],
)
def test_a_foreign_name_is_one_warning_and_no_more(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ[name] = value
    [line] = warnings(capsys)
    assert line["names"] == [name]
    assert load_settings().port == 8000


def test_the_port_that_a_platform_sets_counts_beside_the_one_that_kubernetes_injects() -> None:
    os.environ |= {"APP_PORT": "tcp://10.0.0.1:80", "PORT": "81"}
    assert load_settings().port == 81


def test_a_table_of_the_teams_own_is_accepted_from_the_file_and_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[own]\nunit = "km"\n')
    os.environ |= {"APP_SETTINGS_FILE": str(path), "APP_OWN__COLOUR": "red"}
    assert warnings(capsys) == []
    assert load_settings().own == {"unit": "km", "colour": "red"}


# Values.


@pytest.mark.parametrize(
    "origin",
    [
        *("https://a.example/", "https://a.example/app", "https://A.example", "HTTPS://a.example", "a.example"),
        *("https://*.a.example", "https://a.example:443", "http://a.example:80", "https://bücher.example"),
        *("https://me@a.example", "https://a.example?x", "https://"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    os.environ["APP_CORS_ORIGINS"] = f"https://b.example,{origin}"
    assert refusal().startswith("setting cors_origins: ")


@pytest.mark.parametrize(
    "origin", ["https://a.example", "http://localhost:5173", "http://[::1]:3000", "capacitor://localhost", "*", "null"]
)
def test_an_origin_that_a_browser_sends_is_taken(origin: str) -> None:
    os.environ["APP_CORS_ORIGINS"] = origin
    assert load_settings().cors_origins == [origin]


@pytest.mark.parametrize(
    "proxies", ["nginx", "10.0.0.1:80", "http://10.0.0.1", "10.0.0.1/8", "10.0.0.*", "[::1]", "10.0.0.1,*", "300.0.0.1"]
)
def test_a_trusted_proxy_that_never_matches_is_refused(proxies: str) -> None:
    os.environ["APP_TRUSTED_PROXIES"] = proxies
    assert refusal().startswith("setting trusted_proxies: ")


@pytest.mark.parametrize("proxies", ["*", "10.0.0.1", "10.0.0.0/8,fd00::/8", "::1"])
def test_a_trusted_proxy_is_an_address_or_a_network(proxies: str) -> None:
    os.environ["APP_TRUSTED_PROXIES"] = proxies
    assert load_settings().trusted_proxies == proxies.split(",")


@pytest.mark.parametrize(
    "address",
    [
        f"async+valkey://:{CANARY}@host:notaport",
        f"async+redis://:{CANARY}@[::1",
        f"async+valkey://:{CANARY}@host:6379/?socket_timeout={CANARY}",
        f"async+valkeys+unix://:{CANARY}@/run/valkey",
        f"async+valkey://:{CANARY}@",
    ],
)
def test_a_storage_address_that_can_not_work_is_told_without_it(address: str) -> None:
    os.environ["APP_LIMIT_STORAGE"] = address
    assert "limit_storage" in (said := refusal())
    assert CANARY not in said


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys", "redis+unix"])
def test_every_scheme_of_a_storage_that_is_accepted_works(scheme: str) -> None:
    host = "/run/valkey" if "unix" in scheme else "127.0.0.1:6379"
    os.environ["APP_LIMIT_STORAGE"] = f" async+{scheme}://{host}\n"
    Limiter(load_settings(), Metrics())


def test_a_valkey_on_a_host_called_redis_is_found_there() -> None:
    os.environ["APP_LIMIT_STORAGE"] = "async+valkey://redis:6379"
    with mock.patch("app.access.shared_storage.Valkey.from_url") as opened:
        Limiter(load_settings(), Metrics())
    assert opened.call_args.args == ("valkey://redis:6379",)


@pytest.mark.parametrize(
    ("variable", "upstream"),
    [
        ("OPENAI_BASE_URL", "openai/gpt-4o"),
        ("GROQ_API_BASE", "groq/llama"),
        ("HOSTED_VLLM_API_BASE", "hosted_vllm/qwen"),
        ("ANTHROPIC_BASE_URL", "anthropic/claude-sonnet-4-5"),
        ("ANTHROPIC_API_BASE", "anthropic/claude-sonnet-4-5"),
    ],
)
@pytest.mark.parametrize("address", [f"{CANARY}.example/v1", f"https://me:{CANARY}@vllm/v1", "https://"])
def test_a_vendors_address_without_a_scheme_or_with_a_password_is_refused(
    variable: str, upstream: str, address: str
) -> None:
    os.environ[variable] = address
    os.environ["APP_MODELS"] = json.dumps({"m": {"upstream": upstream}})
    os.environ["APP_DEFAULT_MODEL"] = "m"
    assert variable in (said := refusal())
    assert CANARY not in said


@pytest.mark.parametrize(
    "key", [f"sk-1\n{CANARY}", f"\ufeff{CANARY}", f"\u201c{CANARY}\u201d"], ids=["lines", "mark", "quotes"]
)
@pytest.mark.parametrize(
    ("variable", "row"),
    [
        ("OPENAI_API_KEY", {"upstream": "openai/gpt-4o"}),
        ("OPENAI_API_KEY", {"upstream": "openai/gpt-4o", "protocol": "litellm"}),
        ("ANTHROPIC_AUTH_TOKEN", {"upstream": "anthropic/claude-sonnet-4-5"}),
        ("TEAMS_KEY", {"upstream": "m", "api_base": "http://vllm/v1", "api_key_env": "TEAMS_KEY"}),
    ],
    ids=["direct", "via LiteLLM", "Anthropic", "own variable"],
)
def test_a_key_that_no_header_can_have_stops_the_start(variable: str, row: dict[str, str], key: str) -> None:
    """Such as one that was pasted with its quotes, or with a second line: each call would fail."""
    os.environ[variable] = key
    os.environ["APP_MODELS"] = json.dumps({"m": row})
    os.environ["APP_DEFAULT_MODEL"] = "m"
    assert (said := refusal()) == f"{variable} has a character in it that no key has, such as a line break"
    assert CANARY not in said


def test_a_key_that_is_not_used_stops_no_start() -> None:
    environ = {"GEMINI_API_KEY": "key", "GOOGLE_API_KEY": "a\nb"}
    assert resolve("m", ModelEntry(upstream="gemini/gemini-2.5-flash"), environ).key == "key"


def test_an_address_through_litellm_is_checked_as_well() -> None:
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL"):
        resolve("m", ModelEntry(upstream="gpt-4o", protocol="litellm"), {"OPENAI_BASE_URL": "vllm:8000"})


@pytest.mark.parametrize("audience", ['["a","b"]', "['a', 'b']", " "])
def test_an_audience_that_is_a_list_in_text_is_refused_or_read(audience: str) -> None:
    jwt = {"issuer": "https://idp", "audience": audience, "jwks_url": "https://idp/keys"}
    os.environ["APP_AUTH"] = json.dumps({"jwt": jwt})
    try:
        assert "audience" in refusal()
    except pytest.fail.Exception:
        assert load_settings().auth.jwt.audience == ["a", "b"]  # type: ignore[union-attr]


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_an_otlp_address_that_can_not_work_is_refused(variable: str) -> None:
    os.environ |= {"APP_TELEMETRY": "true", variable: f"me:{CANARY}@collector:4318"}
    assert variable in (said := refusal())
    assert CANARY not in said


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_HEADERS", "x")],
)
def test_an_exporter_that_is_not_there_is_refused(variable: str, value: str) -> None:
    os.environ |= {"APP_TELEMETRY": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", variable: value}
    assert variable in refusal()


def test_an_exporter_that_is_not_installed_is_refused() -> None:
    os.environ |= {"APP_TELEMETRY": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    with mock.patch("app.telemetry.tracing.is_installed", lambda name: "otlp" not in name):
        assert "uv sync --extra telemetry" in refusal()


# Secrets and files.


def test_secrets_lose_blanks_and_line_ends(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_bytes(b'\xef\xbb\xbfGROQ_API_KEY=" from the file\n"\r\n')
    os.environ |= {
        "APP_ENV_FILE": str(env_file),
        "OPENAI_API_KEY": " sk-a\r\n",
        "MY_OWN": "sk-b\n",
        "APP_CALLERS": json.dumps({"web": {"key_sha256": f" {'0' * 64}\n"}}),
        "APP_MODELS": json.dumps({"gpt-4o": {"upstream": "gpt-4o"}, "b": {"upstream": "x", "api_key_env": "MY_OWN"}}),
    }
    settings = load_settings()
    targets = {name: resolve(name, entry, os.environ) for name, entry in settings.models.items()}
    assert (targets["gpt-4o"].key, targets["b"].key) == ("sk-a", "sk-b")
    assert os.environ["GROQ_API_KEY"] == "from the file"
    assert settings.callers["web"].key_sha256 == ["0" * 64]


def test_a_key_of_blanks_alone_is_missing() -> None:
    os.environ["OPENAI_API_KEY"] = " \n"
    assert resolve("m", load_settings().models["gpt-4o"], os.environ).missing == "OPENAI_API_KEY"


def test_the_settings_file_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "Ours"\r\n')
    os.environ["APP_SETTINGS_FILE"] = str(path)
    assert load_settings().name == "Ours"


# Networks.


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::ffff:7f00:1", "127.0.0.1", "::1", "LOCALHOST"])
def test_a_loopback_address_is_one_in_every_spelling(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["::ffff:10.0.0.1", "127.0.0.1.example", "::"])
def test_no_other_address_is_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("address", "no_proxy", "uses"),
    [
        ("http://10.1.2.3/v1", "10.0.0.0/8", False),
        ("http://11.1.2.3/v1", "localhost, 10.0.0.0/8", True),
        ("http://[fd00::1]:8000/v1", "fd00::/8", False),
        ("http://llm.internal/v1", "10.0.0.0/8,.internal", False),
        ("http://llm.example/v1", "10.0.0.0/8,.internal", True),
        ("http://10.1.2.3/v1", "10.1.2.3/8", False),
        ("http://localhost:8080/v1", "localhost:8080,[::1]", False),
        ("http://localhost:8081/v1", "localhost:8080", True),
        ("http://LLM.internal:8080/v1", "llm.internal:8080", False),
        ("http://a.internal:8080/v1", ".internal:8080", False),
        ("http://localhost/v1", "localhost:80", False),
        ("http://localhost/v1", "localhost:443", True),
        ("http://[::1]:80/v1", "localhost:8080,[::1]", False),
        ("http://[::1]/v1", "[::1]:80", False),
        ("http://[::1]:8000/v1", "[::1]:80", True),
        ("http://[::1]:8000/v1", "::1", False),
        ("http://[0:0::1]:8000/v1", "[::1]", False),
        ("http://[::1]:8000/v1", "[::2]", True),
        ("http://[fd00::1]:8000/v1", "[fd00::]/8", False),
    ],
)
def test_no_proxy_takes_networks_and_ports(address: str, no_proxy: str, uses: bool) -> None:
    os.environ |= {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": no_proxy}
    assert proxy_for(address) == ("http://proxy:3128" if uses else None)


def test_what_no_proxy_exempts_by_network_is_told_to_libraries_by_name() -> None:
    os.environ |= {
        "HTTP_PROXY": "http://proxy:3128",
        "NO_PROXY": "10.0.0.0/8",
        "APP_MODELS": json.dumps({"gpt-4o": {"upstream": "cohere/x", "api_base": "http://10.1.2.3/v1"}}),
    }
    load_settings()
    assert os.environ["NO_PROXY"] == "10.0.0.0/8,10.1.2.3"


def test_a_bracketed_address_is_told_to_libraries_without_brackets() -> None:
    os.environ |= {
        "HTTP_PROXY": "http://proxy:3128",
        "NO_PROXY": "[::1],10.1.2.3:80",
        "APP_MODELS": json.dumps(
            {
                "gpt-4o": {"upstream": "cohere/x", "api_base": "http://[::1]:8000/v1"},
                "other": {"upstream": "cohere/x", "api_base": "http://10.1.2.3/v1"},
            }
        ),
    }
    load_settings()
    assert os.environ["NO_PROXY"] == "[::1],10.1.2.3:80,::1", "of a host with a port, other ports are not exempt"


def test_a_proxy_without_a_scheme_works() -> None:
    os.environ |= {"HTTPS_PROXY": " proxy:3128\n", "https_proxy": "other:3128"}
    load_settings()
    assert os.environ["HTTPS_PROXY"] == "http://proxy:3128"
    assert proxy_for("https://a.example") == "http://other:3128"


@pytest.mark.parametrize("proxy", [f"socks5://me:{CANARY}@proxy", f"http://me:{CANARY}@proxy:port", "http://"])
def test_a_proxy_that_can_not_work_is_refused(proxy: str) -> None:
    os.environ["HTTPS_PROXY"] = proxy
    assert "HTTPS_PROXY" in (said := refusal())
    assert CANARY not in said


def test_settings_that_are_made_directly_have_the_same_checks() -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins=["https://a.example/"])


@pytest.mark.parametrize("protocol", ["openai", "litellm"])
def test_the_log_names_the_proxy_where_it_fails_without_its_password(
    protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    os.environ["HTTP_PROXY"] = f"me:{CANARY}@127.0.0.1:{port}"
    assert reason_of_failure(protocol, capsys) == f"127.0.0.1:{port}"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_another_password_is_told_as_the_proxys_failure(
    scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=refuse_once, args=(proxy,), daemon=True).start()
        port = proxy.getsockname()[1]
        os.environ[f"{scheme.upper()}_PROXY"] = f"http://me:{CANARY}@127.0.0.1:{port}"
        assert reason_of_failure("openai", capsys, scheme) == f"127.0.0.1:{port}"


def refuse_once(proxy: socket.socket) -> None:
    connection, _ = proxy.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")


def reason_of_failure(protocol: str, capsys: pytest.CaptureFixture[str], scheme: str = "http") -> str:
    """Ask a model behind a proxy that fails; return the proxy that the log names."""
    api = {"upstream": "openai/m", "api_base": f"{scheme}://llm.example/v1", "protocol": protocol}
    os.environ |= {"APP_MODELS": json.dumps({"gpt-4o": api}), "APP_RETRIES": "0", "APP_DEV": "true"}
    with TestClient(create_app(load_settings(log_format="json")), client=("127.0.0.1", 1)) as client:
        while client.get("/ready").status_code != 200:
            time.sleep(0.05)
        chat = {"messages": [{"role": "user", "content": "Hello"}]}
        answer = client.post("/v1/chat/completions", json=chat, headers={"Host": "localhost"})
    assert answer.status_code == 502
    said = capsys.readouterr().out
    assert CANARY not in said + answer.text
    [line] = [line for line in map(json.loads, said.splitlines()) if line["event"] == "provider can't be reached"]
    return str(line["proxy"])
