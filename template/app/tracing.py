"""Traces, where `telemetry` is on: FastAPI's server spans, and a client span around each call of a model.

Exporters are set by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, ...). Names follow its semantic
conventions for generative AI. No prompt and no answer is ever recorded.
"""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.util import find_spec

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, StatusCode

from app.config import SettingsError
from app.errors import AppError
from app.llm.record import CallRecord
from app.llm.targets import Target

Current = Callable[[], AbstractContextManager[object]]
"""Makes a span the current one."""


def check_sdk() -> None:
    """Raise SettingsError where OpenTelemetry's SDK is not installed."""
    if find_spec("opentelemetry.sdk") is None:
        raise SettingsError("telemetry needs OpenTelemetry's SDK: uv sync --extra telemetry")


def trace_id() -> str | None:
    """Return the current trace's id, as logs carry it."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


class Tracing:
    """Makes the spans of calls."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("app.llm")

    @contextmanager
    def span(self, operation: str, target: Target, record: CallRecord) -> Iterator[Current]:
        """Keep a client span open around a call; give what makes it the current one while an answer is begun.

        It must never be the current one across a generator's yield.

        Args:
            operation: `chat` or `embeddings`.
            target: the model that was asked for.
            record: tells at the end which model answered, and how.
        """
        span = self._tracer.start_span(f"{operation} {target.name}", kind=SpanKind.CLIENT)
        span.set_attribute("gen_ai.operation.name", operation)
        span.set_attribute("gen_ai.provider.name", target.provider)
        span.set_attribute("gen_ai.request.model", target.model)
        tokens_in, tokens_out = record.prompt_tokens, record.completion_tokens
        try:
            yield partial(trace.use_span, span, record_exception=False, set_status_on_exception=False)
        except AppError as error:
            span.set_attribute("error.type", error.code)
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            if record.answered_by:
                span.set_attribute("gen_ai.provider.name", record.answered_by.provider)
                span.set_attribute("gen_ai.request.model", record.answered_by.model)
            if record.response_model:
                span.set_attribute("gen_ai.response.model", record.response_model)
            if record.finish_reasons:
                span.set_attribute("gen_ai.response.finish_reasons", record.finish_reasons)
            span.set_attribute("gen_ai.usage.input_tokens", record.prompt_tokens - tokens_in)
            span.set_attribute("gen_ai.usage.output_tokens", record.completion_tokens - tokens_out)
            span.set_attribute("app.models.tried", record.path)
            span.end()


def inject(headers: MutableMapping[str, str]) -> None:
    """Put the current trace's context into request headers (W3C Trace Context)."""
    propagate.inject(headers)
