"""Traces, where the setting `telemetry` is on: FastAPI's server spans, and a client span around each call of a model.

Exporters are set by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, ...). Names follow its semantic
conventions for generative AI. No prompt and no answer is ever recorded.
"""

import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec

from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.config import SettingsError
from app.network import HOST
from app.quotas import MICRO

OTLP = {
    "ENDPOINT": (rf"https?://([^\s/@]+@)?{HOST}(/\S*)?", "http://collector:4318"),
    "PROTOCOL": ("http/protobuf", "http/protobuf"),
    "HEADERS": ("[^,=]+=[^,]*(,[^,=]+=[^,]*)*,?", "name=value,name=value"),
}
EXPORTER = {f"OTEL_EXPORTER_OTLP_{of}{name}": form for of in ("", "TRACES_") for name, form in OTLP.items()}
EXPORTER["OTEL_TRACES_EXPORTER"] = ("(?i:otlp|none)", "otlp")
"""OpenTelemetry's variables: what the exporter of ours can read. Any other exporter is set up in `own.py`."""

W3C = TraceContextTextMapPropagator()


def check_exporter(environ: Mapping[str, str]) -> None:
    """Raise SettingsError where OpenTelemetry's SDK, or the exporter that its variables ask for, can't work."""
    if not is_installed("opentelemetry.sdk"):
        raise SettingsError("telemetry needs OpenTelemetry's SDK: uv sync --extra telemetry")
    for name, (form, example) in EXPORTER.items():
        if (value := environ.get(name, "").strip()) and not re.fullmatch(form, value):
            raise SettingsError(f"{name} can't work here: it is a value such as {example}")
        if value and name.endswith("ENDPOINT") and not is_installed("opentelemetry.exporter.otlp.proto.http"):
            raise SettingsError(f"{name} needs OpenTelemetry's exporter: uv sync --extra telemetry")


def is_installed(module: str) -> bool:
    """Return whether a module, or the package that holds it, is installed."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def trace_id() -> str | None:
    """Return the current trace's id, as logs carry it."""
    if not get_current():
        return None  # no span, at a quarter of the time that asking for it takes
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


class Tracing:
    """Starts the spans of calls.

    Args:
        tracer: makes the spans; None takes the one that OpenTelemetry is configured with.
    """

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("app.llm")

    def start(self, operation: str, name: str, provider: str, model: str) -> "Span":
        """Start the span of a call.

        Args:
            operation: `chat` or `embeddings`.
            name: public name of the model that was asked for.
            provider: its provider.
            model: the provider's name of it.
        """
        span = self._tracer.start_span(f"{operation} {name}", kind=SpanKind.CLIENT)
        span.set_attribute("gen_ai.operation.name", operation)
        span.set_attribute("gen_ai.provider.name", provider)
        span.set_attribute("gen_ai.request.model", model)
        return Span(span)


class Span:
    """A client span around one call of a model.

    Args:
        span: OpenTelemetry's own.
    """

    def __init__(self, span: trace.Span) -> None:
        self.span = span

    def fail(self, code: str) -> None:
        """Mark the call as failed, with the code of its error."""
        self.span.set_attribute("error.type", code)
        self.span.set_status(StatusCode.ERROR)

    def end(
        self,
        *,
        provider: str,
        model: str,
        response_model: str | None,
        finish_reasons: Sequence[str],
        input_tokens: int,
        output_tokens: int,
        tried: Sequence[str],
        cost: int | None,
    ) -> None:
        """End the span, and record what came of the call.

        Args:
            provider: the provider that answered, or was tried last.
            model: its model, as the request named it.
            response_model: its model, as the answer named it.
            finish_reasons: why the answer ended, one reason for each choice.
            input_tokens: tokens of the request.
            output_tokens: tokens of the answer.
            tried: public names of the models that were tried, one for each attempt.
            cost: what the call costs, in micro-dollars; None if nobody knows.
        """
        self.span.set_attribute("gen_ai.provider.name", provider)
        self.span.set_attribute("gen_ai.request.model", model)
        if response_model:
            self.span.set_attribute("gen_ai.response.model", response_model)
        if finish_reasons:
            self.span.set_attribute("gen_ai.response.finish_reasons", finish_reasons)
        self.span.set_attribute("gen_ai.usage.input_tokens", input_tokens)
        self.span.set_attribute("gen_ai.usage.output_tokens", output_tokens)
        self.span.set_attribute("app.models.tried", tried)
        if cost is not None:
            self.span.set_attribute("app.cost_usd", cost / MICRO)
        self.span.end()


def current(span: Span | None) -> AbstractContextManager[object]:
    """Return a context in which a span is the current one, so that requests to a provider carry its trace.

    Never enter it around the `yield` of a generator: the one who reads the generator would see the span as current.
    """
    if span is None:
        return nullcontext()
    return trace.use_span(span.span, record_exception=False, set_status_on_exception=False)


def keep_current() -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the span that is current now current again, at a later step of a generator."""
    span = trace.get_current_span()
    if not span.get_span_context().is_valid:  # nobody traces
        return nullcontext
    return partial(trace.use_span, span, record_exception=False, set_status_on_exception=False)


def inject(headers: MutableMapping[str, str]) -> None:
    """Put `traceparent` into the headers of a request to a provider (W3C Trace Context).

    Not `tracestate` and `baggage`: those are what our callers and their vendors tell each other.
    """
    carrier: dict[str, str] = {}
    W3C.inject(carrier)
    if "traceparent" in carrier:
        headers["traceparent"] = carrier["traceparent"]
