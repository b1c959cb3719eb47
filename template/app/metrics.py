"""Prometheus metrics. Labels hold names from the tables alone, never what a client sent.

With several workers each writes to files of its own (`PROMETHEUS_MULTIPROC_DIR`, set by `python -m app`), and a scrape
of any worker adds them up.
"""

import os
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CHUNK_PAUSES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """All metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry, multiprocess_mode="livesum")
        histogram = partial(Histogram, registry=self._registry, buckets=DURATIONS)
        self.requests = histogram(
            "http_request_duration_seconds", "From a request's arrival to its last byte.", ["route", "status", "model"]
        )
        self.requests_in_flight = gauge("http_requests_in_flight", "Requests now.")
        self.disconnects = counter("client_disconnects", "Requests whose client left before the end.", ["route"])
        self.first_chunk = histogram(
            "llm_time_to_first_chunk_seconds", "From a call's start to its stream's first chunk.", ["model"]
        )
        self.per_chunk = histogram(
            "llm_time_per_chunk_seconds", "A stream's mean time between chunks.", ["model"], buckets=CHUNK_PAUSES
        )
        self.tokens = counter("llm_tokens", "Tokens, counted or estimated.", ["model", "caller", "direction"])
        self.calls_in_flight = gauge("llm_calls_in_flight", "Calls now.", ["model"])
        self.upstream = counter("llm_upstream_calls", "Attempts: ok, cancelled or an error.", ["model", "outcome"])
        self.retries = counter("llm_retries", "Attempts after a first one.", ["model"])
        self.fallbacks = counter("llm_fallbacks", "Calls passed on from a model that failed.", ["model"])
        self.truncated = counter("llm_streams_truncated", "Streams cut off by their provider.", ["model"])
        self.decisions = counter("limiter_decisions", "Calls admitted or refused.", ["scope", "decision"])
        self.storage_up = gauge("limit_storage_up", "Whether the limit storage answers.", multiprocess_mode="livemin")
        self.cooling = gauge("llm_model_cooling", "Workers that leave a model alone.", ["model"])
        self.storage_up.set(1)
        self.of: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))
        """A metric's child for its labels: looked up once, for those on the path of every request."""

    def render(self) -> bytes:
        """Return the text exposition of all workers' numbers."""
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not directory:
            return generate_latest(self._registry)
        for file in Path(directory).glob("gauge_live*.db"):
            found = re.search(r"_(\d+)\.db$", file.name)
            if found and not Path(f"/proc/{found[1]}").exists() and Path("/proc").exists():
                mark_process_dead(int(found[1]))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
