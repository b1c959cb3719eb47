"""An OpenTelemetry collector of our own on a loopback port: it takes OTLP over HTTP, and keeps the spans."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(frozen=True)
class Seen:
    """A span as it was exported.

    Attributes:
        trace: id of its trace, in hexadecimal, like the other ids.
        id: its own.
        parent: id of its parent; empty for a root.
        kind: `server`, `client` or `internal`.
        name: its name.
        attributes: its attributes.
        failed: whether its status is an error.
        service: name of the service that it comes from.
        events: how many events it has, such as recorded exceptions.
    """

    trace: str
    id: str
    parent: str
    kind: str
    name: str
    attributes: dict[str, Any]
    failed: bool
    service: str
    events: int


class Collector:
    """Listens while its context lasts.

    Attributes:
        url: what `OTEL_EXPORTER_OTLP_ENDPOINT` is to be.
        spans: every span so far.
        bodies: the requests' bodies as they came, joined.
    """

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.bodies = b""
        self._arrived = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector._take(self.path, self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01], name="collector")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def trace(self, number: str, count: int = 2, seconds: float = 20) -> list[Seen]:
        """Wait until a trace has so many spans; return them, the server's first.

        Raises:
            AssertionError: it hasn't within so many seconds.
        """

        def spans() -> list[Seen]:
            return sorted((span for span in self.spans if span.trace == number), key=lambda span: span.kind != "server")

        with self._arrived:
            assert self._arrived.wait_for(lambda: len(spans()) >= count, seconds), self.spans
        return spans()

    def _take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(body)
        with self._arrived:
            self.bodies += body
            for resource in request.resource_spans:
                service = {item.key: _value(item.value) for item in resource.resource.attributes}["service.name"]
                self.spans += [_seen(span, service) for scope in resource.scope_spans for span in scope.spans]
            self._arrived.notify_all()


def _seen(span: Span, service: str) -> Seen:
    return Seen(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        name=span.name,
        attributes={item.key: _value(item.value) for item in span.attributes},
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        service=service,
        events=len(span.events),
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
