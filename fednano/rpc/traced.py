"""Calls as parts of their callers' traces."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from fednano.tracing import METADATA_KEY, span_for_peer

Context = grpc.aio.ServicerContext[Any, Any]


class TraceInterceptor(grpc.aio.ServerInterceptor):
    """Records each call whose caller sends a trace context, and no other."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata or ())
        parent = metadata.get(METADATA_KEY, "")
        if handler is None or not isinstance(parent, str) or not parent:
            return handler
        kind = f"{_word(handler.request_streaming)}_{_word(handler.response_streaming)}"
        wrap = _stream if handler.response_streaming else _unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        inner = wrap(getattr(handler, kind), handler_call_details.method, parent)
        return make(inner, handler.request_deserializer, handler.response_serializer)


def _word(streams: bool) -> str:
    return "stream" if streams else "unary"


def _unary(
    inner: Callable[[Any, Context], Awaitable[Any]], method: str, parent: str
) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        with span_for_peer(method.rpartition("/")[2], parent, method=method):
            return await inner(request, context)

    return call


def _stream(
    inner: Callable[[Any, Context], AsyncIterator[Any]], method: str, parent: str
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        with span_for_peer(method.rpartition("/")[2], parent, method=method):
            async for response in inner(request, context):
                yield response

    return call
