"""With `telemetry` on, a collector gets one trace of each call; with it off, OpenTelemetry's SDK stays out."""

import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

import app.telemetry.tracing
from app.config import SettingsError
from app.main import create_app
from tests.conftest import MakeSettings
from tests.serving import Process
from tests.stub import MODEL_SUFFIX, PROMPT_TOKENS, TEXT, Behaviour, Stub
from tests.template.collector import Collector, Seen

PROMPT = "a prompt that nobody else is to see"
MOST_OF_A_CALL = 0.06
"""Seconds of CPU time that a call via LiteLLM takes the event loop at most, when nobody else gets an answer.

Seen: 0.01, and twelve times as much where nothing was warmed up.
"""
ANSWER_TOKENS = len(TEXT.split()) + 1


class Traced:
    """A server with `telemetry` on, its provider, and its collector.

    It is also the server on which LiteLLM was loaded with nothing before it, and with all that it logs.

    Attributes:
        first_calls: seconds of CPU time that the event loop took for the first call after `/ready`, by the model.
    """

    def __init__(self, process: Process, stub: Stub, collector: Collector, key: str) -> None:
        self.process = process
        self.stub = stub
        self.collector = collector
        self._key = key
        self.first_calls: dict[str, float] = {}

    def ask(self, model: str, *behaviours: Behaviour, path: str = "/v1/chat/completions", **fields: Any) -> list[Seen]:
        """Call a model as part of a trace of one's own; return the trace's spans, the server's first.

        Args:
            model: its public name.
            *behaviours: how the provider answers.
            path: where to.
            **fields: the body's; a prompt, unless there is an `input`.
        """
        trace = secrets.token_hex(16)
        self.stub.queue(*behaviours)
        httpx2.post(
            self.process.url + path,
            json={"model": model} | (fields if "input" in fields else {"messages": _said(PROMPT)} | fields),
            headers={
                "Authorization": f"Bearer {self._key}",
                "traceparent": f"00-{trace}-{'ab' * 8}-01",
                "tracestate": "vendor=private",
                "baggage": "user=alice",
            },
            timeout=60,
        )
        return self.collector.trace(trace)

    def log_line(self, trace: str) -> Any:
        """Return the one line in the log that is part of a trace."""
        [line] = [json.loads(line) for line in self.process.lines if trace in line]
        return line


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def traced(key: str) -> Iterator[Traced]:
    with Stub() as stub, Collector() as collector:
        at_stub = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}
        models = {
            "direct": at_stub,
            "litellm": at_stub | {"protocol": "litellm"},
            "anthropic": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": stub.url},
            "gemini": {"upstream": "gemini/gemini-2.5-flash", "api_base": f"{stub.url}/v1beta", "protocol": "litellm"},
            "failing": {"upstream": "hosted_vllm/qwen", "api_base": stub.url, "fallbacks": ["direct"]},
            "demo": {"upstream": "demo/echo"},
        }
        env = {
            "APP_TELEMETRY": "true",
            "APP_NAME": "Traced backend",
            "APP_LOG_FORMAT": "json",
            "LITELLM_LOG": "DEBUG",
            "PYTHONWARNINGS": "always",
            "APP_RETRIES": "0",
            "APP_DEFAULT_MODEL": "direct",
            "APP_MODELS": json.dumps(models),
            "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}}),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "20",
        }
        with Process(env=env) as process:
            process.wait_until_ready()
            traced = Traced(process, stub, collector, key)
            for way in ("anthropic", "gemini"):
                before = traced.process.loop_seconds
                traced.ask(way)
                traced.first_calls[way] = traced.process.loop_seconds - before
            yield traced


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("way", ["direct", "litellm", "demo"])
def test_a_call_is_one_trace_of_a_server_span_and_a_client_span(traced: Traced, way: str, stream: bool) -> None:
    server, client = traced.ask(way, stream=stream)
    assert (server.kind, server.name) == ("server", "POST /v1/chat/completions")
    assert (client.kind, client.name) == ("client", f"chat {way}")
    assert server.parent == "ab" * 8
    assert client.parent == server.id
    assert {server.service, client.service} == {"Traced backend"}
    assert not server.failed
    assert not client.failed


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_call_has_the_attributes_of_a_model_call(traced: Traced, stream: bool) -> None:
    server, client = traced.ask("direct", stream=stream)
    assert client.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o" + MODEL_SUFFIX,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": PROMPT_TOKENS,
        "gen_ai.usage.output_tokens": ANSWER_TOKENS,
        "app.models.tried": ["direct"],
    }
    assert server.attributes["http.response.status_code"] == 200


def test_embeddings_have_a_span_too(traced: Traced) -> None:
    _, client = traced.ask("direct", path="/v1/embeddings", input="Hello")
    assert client.name == "embeddings direct"
    assert client.attributes["gen_ai.operation.name"] == "embeddings"
    assert client.attributes["gen_ai.usage.input_tokens"] == PROMPT_TOKENS


@pytest.mark.parametrize("way", ["direct", "litellm"])
def test_an_error_is_one_in_both_spans(traced: Traced, way: str) -> None:
    server, client = traced.ask(way, Behaviour(status=429))
    assert server.attributes["http.response.status_code"] == 429
    assert client.failed
    assert client.attributes["error.type"] == "provider_rate_limited"
    assert "gen_ai.response.model" not in client.attributes
    assert (client.events, server.events) == (0, 0), "an exception's text may quote a prompt"


def test_an_error_in_mid_stream_is_one_in_the_client_span(traced: Traced) -> None:
    server, client = traced.ask("direct", Behaviour(cut_after=3, pace=0.01), stream=True)
    assert server.attributes["http.response.status_code"] == 200
    assert client.failed
    assert client.attributes["error.type"] == "provider_error"
    assert client.attributes["gen_ai.response.model"] == "gpt-4o" + MODEL_SUFFIX


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_after_a_fallback_the_span_tells_of_the_model_that_answered(traced: Traced, stream: bool) -> None:
    _, client = traced.ask("failing", Behaviour(status=500), stream=stream)
    assert client.name == "chat failing"
    assert client.attributes["app.models.tried"] == ["failing", "direct"]
    assert client.attributes["gen_ai.provider.name"] == "openai"
    assert client.attributes["gen_ai.request.model"] == "gpt-4o"
    assert client.attributes["gen_ai.response.model"] == "gpt-4o" + MODEL_SUFFIX
    assert not client.failed


def test_a_client_that_leaves_still_ends_its_trace(traced: Traced, key: str) -> None:
    trace = secrets.token_hex(16)
    traced.stub.queue(Behaviour(stall_after=3))
    headers = {"Authorization": f"Bearer {key}", "traceparent": f"00-{trace}-{'ab' * 8}-01"}
    body = {"model": "direct", "messages": _said(PROMPT), "stream": True}
    with httpx2.stream(
        "POST", f"{traced.process.url}/v1/chat/completions", json=body, headers=headers, timeout=60
    ) as response:
        next(response.iter_bytes())
    _, client = traced.collector.trace(trace)
    assert client.attributes["gen_ai.response.model"] == "gpt-4o" + MODEL_SUFFIX


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("way", ["direct", "litellm", "anthropic"])
def test_the_provider_is_told_of_the_client_span_and_nothing_more(traced: Traced, way: str, stream: bool) -> None:
    """W3C Trace Context: https://www.w3.org/TR/trace-context/#traceparent-header.

    `tracestate` and `baggage` are what our callers and their vendors tell each other.
    """
    _, client = traced.ask(way, stream=stream)
    headers = traced.stub.requests[-1].headers
    assert headers["traceparent"] == f"00-{client.trace}-{client.id}-01"
    assert not {"tracestate", "baggage"} & headers.keys()
    assert "private" not in str(headers)
    assert "alice" not in str(headers)


def test_embeddings_tell_no_more_either(traced: Traced) -> None:
    for way in ("direct", "litellm"):
        traced.ask(way, path="/v1/embeddings", input="Hello")
        headers = traced.stub.requests[-1].headers
        assert "traceparent" in headers
        assert not {"tracestate", "baggage"} & headers.keys()


def test_the_log_line_of_a_request_names_its_trace(traced: Traced) -> None:
    server, _ = traced.ask("direct")
    line = traced.log_line(server.trace)
    assert (line["event"], line["trace_id"]) == ("request", server.trace)


@pytest.mark.parametrize("way", ["anthropic", "gemini"])
def test_the_first_call_after_ready_blocks_nobody(traced: Traced, way: str) -> None:
    assert 0 < traced.first_calls[way] < MOST_OF_A_CALL


def test_litellm_and_warnings_write_no_line_that_is_not_json(traced: Traced) -> None:
    for way in ("litellm", "anthropic"):
        traced.ask(way)
        traced.ask(way, Behaviour(status=500))
        traced.ask(way, Behaviour(cut_after=3), stream=True)
    assert [line for line in traced.process.lines if not line.startswith("{")] == []
    assert [json.loads(line) for line in traced.process.lines]


def test_no_prompt_and_no_answer_is_exported(traced: Traced) -> None:
    for stream in (False, True):
        traced.ask("direct", stream=stream)
        traced.ask("direct", Behaviour(status=400, message=PROMPT), stream=stream)
    assert PROMPT.encode() not in traced.collector.bodies
    assert TEXT.encode() not in traced.collector.bodies


def test_probes_are_no_traces(traced: Traced) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert httpx2.get(traced.process.url + path, timeout=60).status_code == (401 if path == "/metrics" else 200)
    traced.ask("demo")
    assert {span.attributes.get("http.route") for span in traced.collector.spans if span.kind == "server"} <= {
        "/v1/chat/completions",
        "/v1/embeddings",
    }


def test_spans_are_delivered_before_the_process_ends(key: str) -> None:
    with Stub() as stub, Collector() as collector:
        env = {
            "APP_TELEMETRY": "true",
            "APP_MODELS": json.dumps({"demo": {"upstream": "demo/echo"}}),
            "APP_DEFAULT_MODEL": "demo",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "60000",
        }
        with Process(env=env) as process:
            traced = Traced(process, stub, collector, key)
            with contextlib.ExitStack() as stack:
                stack.callback(process.wait, 30)
                stack.callback(process.terminate)
                httpx2.post(f"{process.url}/v1/chat/completions", json={"messages": _said(PROMPT)}, timeout=60)
            assert len(traced.collector.spans) == 2


def test_telemetry_without_the_sdk_says_how_to_get_it(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.telemetry.tracing, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="uv sync --extra telemetry"):
        create_app(settings(telemetry=True))
