"""Prometheus metrics. Labels hold names from the tables alone, never what a client sent.

With several workers, each writes to files of its own (`PROMETHEUS_MULTIPROC_DIR`, set by `python -m app`), and a scrape
of any worker adds them up.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.telemetry.deferred import Deferred

DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CHUNK_PAUSES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

M = TypeVar("M", Counter, Gauge, Histogram)


class _OwnMetrics(Collector):
    """The team's metrics: those of prometheus-client's own registry, but for what it tells of the process.

    With several workers there is no need: they are in the same files as ours.
    """

    def collect(self) -> Iterator[Metric]:
        for metric in REGISTRY.collect():
            if not metric.name.startswith(("python_", "process_")):
                yield metric


class Metrics:
    """All metrics of one application, in a registry of their own.

    A metric with labels is a function of their values, in the order in which they are named here:
    `metrics.retries("gpt-4o").inc()`. It remembers what it has returned, since that is on the path of every request.

    Attributes:
        deferred: what is to be counted yet.
    """

    def __init__(self) -> None:
        self.deferred = Deferred()
        self._registry = CollectorRegistry()
        self._registry.register(_OwnMetrics())
        sums = partial(Gauge, registry=self._registry, multiprocess_mode="livesum")
        self.requests_in_flight = sums("http_requests_in_flight", "HTTP requests being answered now.")
        self.storage_up = sums("limit_storage_up", "1 while the limit storage answers.", multiprocess_mode="livemin")
        self.storage_up.set(1)
        counter = partial(self._labelled, Counter)
        gauge = partial(self._labelled, sums)
        budget = partial(gauge, labelnames=["scope", "name", "window"], multiprocess_mode="livemostrecent")
        duration = partial(self._labelled, Histogram, buckets=DURATIONS)
        pause = partial(self._labelled, Histogram, buckets=CHUNK_PAUSES)
        self.requests = duration(
            "http_request_duration_seconds",
            "From a request's arrival to the last byte of its response.",
            ["route", "status", "model"],
        )
        self.disconnects = counter("client_disconnects", "Requests whose client left before their end.", ["route"])
        self.stream_errors = counter("http_stream_errors", "Responses that an error has broken off.", ["route", "code"])
        self.first_chunk = duration(
            "llm_time_to_first_chunk_seconds", "From a call's start to the first chunk of its stream.", ["model"]
        )
        self.per_chunk = pause("llm_time_per_chunk_seconds", "Mean time between two chunks of a stream.", ["model"])
        self.tokens = counter("llm_tokens", "Tokens, counted or estimated.", ["model", "caller", "direction"])
        self.cost = counter("llm_cost_usd", "What calls cost, in US dollars.", ["model", "caller"])
        self.budget_limit = budget("llm_budget_limit_usd", "Budgets, in US dollars.")
        self.budget_used = budget("llm_budget_used_usd", "What is spent or reserved of a budget.")
        self.budget_ends = budget("llm_budget_ends_timestamp_seconds", "When a budget's window ends.")
        self.budget_refusals = counter(
            "llm_budget_refusals", "Calls refused because of a budget.", ["scope", "name", "window"]
        )
        self.calls_in_flight = gauge("llm_calls_in_flight", "Calls of a model going on now.", ["model"])
        self.upstream_calls = counter("llm_upstream_calls", "Attempts: ok, cancelled, an error.", ["model", "outcome"])
        about = "Calls in other dialects than chat: passed_through or translated."
        self.dialects = counter("llm_dialect_calls", about, ["model", "dialect", "way"])
        self.retries = counter("llm_retries", "Attempts after the first one.", ["model"])
        self.fallbacks = counter("llm_fallbacks", "Calls passed on to a fallback, by the model that failed.", ["model"])
        self.truncated = counter("llm_streams_truncated", "Streams that their provider cut off.", ["model"])
        self.decisions = counter("limiter_decisions", "Calls that were admitted or refused.", ["scope", "decision"])
        self.circuit_open = gauge("llm_model_cooling", "Workers whose circuit breaker for a model is open.", ["model"])

    def _labelled(self, kind: Callable[..., M], *about: Any, **options: Any) -> Callable[..., M]:
        return cache(kind(*about, registry=self._registry, **options).labels)

    def render(self) -> bytes:
        """Return the numbers of all workers in Prometheus' text format."""
        self.deferred.flush()
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not directory:
            return generate_latest(self._registry)
        for file in Path(directory).glob("gauge_live*.db"):
            process = file.stem.rpartition("_")[2]
            if Path("/proc").exists() and not Path("/proc", process).exists():
                mark_process_dead(int(process))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
