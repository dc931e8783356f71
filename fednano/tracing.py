"""OpenTelemetry traces, behind the extra ``tracing`` and off unless somebody names a collector.

A span says what was done, when, for which run, round or step, and what it was part of. What may be said is a fixed list
of attributes: never a tensor, a label, a prompt or a token, nor an error's words.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fednano.errors import SettingsInvalid
from fednano.telemetry import get_logger

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

log = get_logger("tracing")

METADATA_KEY = "traceparent"
# What a span may say beside its name and its times.
ATTRIBUTES = frozenset(
    {"run", "round", "client", "task", "step", "step_id", "tokens", "examples", "method", "updates", "error.type"}
)
LONGEST_VALUE = 200
FLUSH_TIMEOUT_MS = 3_000
EXPORT_TIMEOUT_S = 3

Value = str | int


@contextmanager
def tracing(service: str, endpoint: str) -> Iterator[None]:
    """Sends this process's spans to ``endpoint``, a URL, by OTLP over gRPC; empty: nothing is recorded, nor imported.

    Once in a process, around all of ``main``; what is left at the end is sent within a few seconds. Raises
    SettingsInvalid where the extra is not installed. Sampling, headers and the collector's certificates are
    OpenTelemetry's own OTEL_* variables.
    """
    if not endpoint:
        yield
        return
    provider = _configured(service, endpoint)
    log.info("tracing", endpoint=endpoint)
    try:
        yield
    finally:
        provider.force_flush(FLUSH_TIMEOUT_MS)
        provider.shutdown()


def span(name: str, **attributes: Value) -> AbstractContextManager[None]:
    """Records what is done within the block as a part of the span around it, if any."""
    return nullcontext() if _api() is None else _recorded(name, attributes, None)


def span_for_peer(name: str, parent: str, **attributes: Value) -> AbstractContextManager[None]:
    """The same as a part of a peer's span, by its ``traceparent``; nothing where the peer records none."""
    if _api() is None or not parent:
        return nullcontext()
    return _recorded(name, attributes, parent)


def traceparent() -> str:
    """The W3C trace context of the span around the caller, empty where there is none."""
    if _api() is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(METADATA_KEY, "")


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """The same as gRPC metadata for a call."""
    parent = traceparent()
    return ((METADATA_KEY, parent),) if parent else ()


@contextmanager
def _recorded(name: str, attributes: dict[str, Value], parent: str | None) -> Iterator[None]:
    from opentelemetry.trace import StatusCode, get_tracer

    assert set(attributes) <= ATTRIBUTES, f"{name} may not say {sorted(set(attributes) - ATTRIBUTES)}"
    said = {key: value[:LONGEST_VALUE] if isinstance(value, str) else value for key, value in attributes.items()}
    # An error's words may quote what it is about: only its class is recorded.
    with get_tracer("fednano").start_as_current_span(
        name, _context(parent), attributes=said, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(StatusCode.ERROR)
            raise


def _configured(service: str, endpoint: str) -> "TracerProvider":
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        message = "--trace-endpoint needs OpenTelemetry, which is not installed: pip install 'fednano[tracing]'"
        raise SettingsInvalid(message) from error
    resource = Resource.create({"service.name": service, "service.version": version("fednano")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)))
    trace.set_tracer_provider(provider)
    _hear("opentelemetry")
    return provider


def _context(parent: str | None) -> "Context | None":
    if parent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({METADATA_KEY: parent})


def _api() -> Any:
    """OpenTelemetry's API in a process that records; what nobody has imported, nobody has configured."""
    return sys.modules.get("opentelemetry.trace")


class _Forward(logging.Handler):
    """A library's warnings as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        log.warning("tracing_fault", why=record.getMessage()[:LONGEST_VALUE])


def _hear(name: str) -> None:
    library = logging.getLogger(name)
    library.propagate = False
    library.setLevel(logging.WARNING)
    library.addHandler(_Forward())
