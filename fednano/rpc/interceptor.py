"""The one place where a service's exceptions become gRPC statuses; servicers catch nothing."""

from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from fednano.errors import FednanoError, InternalFault, WireError
from fednano.rpc.status import to_status
from fednano.telemetry import get_logger

log = get_logger("rpc")

# Trailing metadata of every health check.
VERSION_KEY = "fednano-version"

Context = grpc.aio.ServicerContext[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Sends WireErrors with all their facts; hides everything else behind INTERNAL and logs it with its trace."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        request, response = (
            "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
        )
        kind = f"{request}_{response}"
        wrap = _stream if handler.response_streaming else _unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        inner = wrap(getattr(handler, kind), handler_call_details.method)
        return make(inner, handler.request_deserializer, handler.response_serializer)


def _unary(inner: Callable[[Any, Context], Awaitable[Any]], method: str) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        if method.startswith("/grpc.health."):
            context.set_trailing_metadata(((VERSION_KEY, version("fednano")),))
        try:
            return await inner(request, context)
        except Exception as error:
            await _refuse(error, context, method)

    return call


def _stream(
    inner: Callable[[Any, Context], AsyncIterator[Any]], method: str
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in inner(request, context):
                yield response
        except Exception as error:
            await _refuse(error, context, method)

    return call


async def _refuse(error: Exception, context: Context, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, WireError):
        log.error("call_failed", method=method, error=type(error).__name__, exc_info=error)
        kept = (
            error.message if isinstance(error, FednanoError) else "an unexpected fault; the service's log has the trace"
        )
        error = InternalFault(kept)
    else:
        log.info("call_refused", method=method, error=type(error).__name__, message=error.message, facts=error.facts)
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
