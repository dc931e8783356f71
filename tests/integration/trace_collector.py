"""An OpenTelemetry collector for one test: it takes spans by OTLP over gRPC and keeps them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One span and the service that recorded it."""

    service: str
    name: str
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    attributes: dict[str, str | int]
    texts: tuple[str, ...]


@dataclass(kw_only=True)
class Collector(rpc.TraceServiceServicer):
    spans: list[Seen] = field(default_factory=list)

    def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:
        for of_service in request.resource_spans:
            service = next(a.value.string_value for a in of_service.resource.attributes if a.key == "service.name")
            self.spans += [_seen(service, span) for scope in of_service.scope_spans for span in scope.spans]
        return pb.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]

    def parent(self, span: Seen) -> Seen | None:
        return next((each for each in self.spans if each.span_id == span.parent_id), None)

    def line(self, span: Seen) -> list[str]:
        """What the span is part of, from the span to the root."""
        above: Seen | None = span
        names = []
        while above is not None:
            names.append(f"{above.service.removeprefix('fednano.')}: {above.name}")
            above = self.parent(above)
        return names


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """The collector and its URL, as long as the block runs."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    rpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(1.0).wait()


def _seen(service: str, span: Span) -> Seen:
    values = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
    return Seen(
        service=service,
        name=span.name,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_id=span.parent_span_id,
        attributes=values,
        texts=(span.status.message, *(event.name for event in span.events)),
    )
