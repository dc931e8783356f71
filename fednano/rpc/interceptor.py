"""Around every call: exceptions become gRPC statuses, the call is counted, its log lines say what it is about.

This is the one place that catches everything; servicers catch nothing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status
from prometheus_client import Counter
from structlog.contextvars import bind_contextvars, bound_contextvars

from fednano.errors import FednanoError, InternalFault, WireError
from fednano.metrics import Outcome, RpcMetrics
from fednano.rpc.status import reason_name, to_status
from fednano.telemetry import get_logger

log = get_logger("rpc")

# Trailing metadata of every health check.
VERSION_KEY = "fednano-version"
# Fields of requests that hold a resource's name, and what a log line calls it.
NAME_FIELDS = ("run", "round", "client", "name", "parent")

Context = grpc.aio.ServicerContext[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Sends WireErrors with all their facts; hides everything else behind INTERNAL and logs it with its trace."""

    def __init__(self, metrics: RpcMetrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None:
            return None
        request, response = (
            "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
        )
        kind = f"{request}_{response}"
        wrap = _stream if handler.response_streaming else _unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        inner = wrap(getattr(handler, kind), method, self._metrics)
        return make(
            inner,
            _counting_input(handler.request_deserializer, self._metrics.received(method)),
            _counting_output(handler.response_serializer, self._metrics.sent(method)),
        )


def _unary(
    inner: Callable[[Any, Context], Awaitable[Any]], method: str, metrics: RpcMetrics
) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        if method.startswith("/grpc.health."):
            context.set_trailing_metadata(((VERSION_KEY, version("fednano")),))
        with metrics.call(method) as outcome, bound_contextvars(**_names(request)):
            try:
                return await inner(request, context)
            except Exception as error:
                await _refuse(error, context, method, outcome)

    return call


def _stream(
    inner: Callable[[Any, Context], AsyncIterator[Any]], method: str, metrics: RpcMetrics
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        # For the rest of this call's task, which is its own.
        bind_contextvars(**_names(request))
        with metrics.call(method) as outcome:
            try:
                async for response in inner(request, context):
                    yield response
            except Exception as error:
                await _refuse(error, context, method, outcome)

    return call


async def _refuse(error: Exception, context: Context, method: str, outcome: Outcome) -> None:
    if isinstance(error, grpc.aio.AbortError):
        outcome.code = getattr(context.code(), "name", "UNKNOWN")
        raise error
    if not isinstance(error, WireError):
        log.error("call_failed", method=method, error=type(error).__name__, exc_info=error)
        kept = (
            error.message if isinstance(error, FednanoError) else "an unexpected fault; the service's log has the trace"
        )
        error = InternalFault(kept)
    else:
        log.info("call_refused", method=method, error=type(error).__name__, message=error.message, facts=error.facts)
    outcome.code, outcome.reason = error.code, reason_name(type(error))
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


def _names(request: Any) -> dict[str, str]:
    """The resource that a request of one message is about: run=runs/demo, round=runs/demo/rounds/3."""
    found: dict[str, str] = {}
    for field in NAME_FIELDS:
        text = getattr(request, field, "")
        if not isinstance(text, str) or not text.startswith("runs/"):
            continue
        kind = "round" if "/rounds/" in text else "client" if "/clients/" in text else "run"
        found[kind] = text[:200]
    return found


def _counting_input(deserialize: Callable[[bytes], Any], counter: Counter) -> Callable[[bytes], Any]:
    def counted(content: bytes) -> Any:
        counter.inc(len(content))
        return deserialize(content)

    return counted


def _counting_output(serialize: Callable[[Any], bytes], counter: Counter) -> Callable[[Any], bytes]:
    def counted(message: Any) -> bytes:
        content = serialize(message)
        counter.inc(len(content))
        return content

    return counted
