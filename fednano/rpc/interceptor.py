"""Around every call: the gate, exceptions as gRPC statuses, the call is counted, its log lines say what it is about.

This is the one place that catches everything; servicers catch nothing.
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status
from prometheus_client import Counter
from structlog.contextvars import bind_contextvars

from fednano.errors import FednanoError, InternalFault, Unsupported, WireError
from fednano.metrics import Outcome, RpcMetrics
from fednano.rpc.gate import REFUSALS, Gate, Passage
from fednano.rpc.limits import TooManyCalls
from fednano.rpc.status import reason_name, to_status
from fednano.telemetry import get_logger

log = get_logger("rpc")

# Trailing metadata of every health check: the release, and this machine's clock in milliseconds since 1970.
VERSION_KEY = "fednano-version"
CLOCK_KEY = "fednano-clock-ms"
# Fields of requests that hold a resource's name, and what a log line calls it.
# After these the servicer has not seen the stream, so nobody reads it.
LINGERING = (*REFUSALS, TooManyCalls)
LINGER_S = 1.0
LINGER_PAUSE_S = 0.1
NAME_FIELDS = ("run", "round", "client", "name", "parent")

Context = grpc.aio.ServicerContext[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls through the gate, and reads them. Sends WireErrors with all their facts; hides everything else behind
    INTERNAL and logs it with its trace."""

    def __init__(self, gate: Gate, metrics: RpcMetrics) -> None:
        self._gate = gate
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
        reader = _Reader(
            deserialize=_counting_input(handler.request_deserializer, self._metrics.received(method)),
            is_stream=handler.request_streaming,
        )
        call = wrap(getattr(handler, kind), method, self._metrics, self._gate, reader)
        # The bytes come as they are: they are read when the gate has let the call in.
        return make(call, None, _counting_output(handler.response_serializer, self._metrics.sent(method)))


class _Messages:
    """The messages of a stream, each read through the call's passage. A wait that is cancelled loses none."""

    def __init__(self, received: AsyncIterable[bytes], passage: Passage, deserialize: Callable[[bytes], Any]) -> None:
        self._received = received
        self._passage = passage
        self._deserialize = deserialize

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        # Not before: gRPC's iterator warns where it was made and never asked.
        return await self._passage.read(await anext(aiter(self._received)), self._deserialize)


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Makes a request, or an iterator of requests, of what gRPC received."""

    deserialize: Callable[[bytes], Any]
    is_stream: bool

    async def read(self, received: Any, passage: Passage) -> Any:
        if self.is_stream:
            return _Messages(received, passage, self.deserialize)
        request = await passage.read(received, self.deserialize)
        # For the rest of this call's task, which is its own.
        bind_contextvars(**_names(request))
        return request

    async def linger(self, received: Any, error: Exception) -> None:
        """Reads on past a refusal until the caller pauses, and forgets it, for at most a second.

        gRPC's Python client shows INTERNAL, not the refusal, where a write of its own meets the end of the call.
        """
        if not self.is_stream or not isinstance(error, LINGERING):
            return
        contents = aiter(received)
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while True:
                    async with asyncio.timeout(LINGER_PAUSE_S):
                        if await anext(contents, None) is None:
                            return


def _unary(
    inner: Callable[[Any, Context], Awaitable[Any]], method: str, metrics: RpcMetrics, gate: Gate, reader: _Reader
) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(received: Any, context: Context) -> Any:
        if method.startswith("/grpc.health."):
            clock_ms = str(time.time_ns() // 1_000_000)
            context.set_trailing_metadata(((VERSION_KEY, version("fednano")), (CLOCK_KEY, clock_ms)))
        with metrics.call(method) as outcome:
            try:
                async with gate.passing(method, context) as passage:
                    answer = await inner(await reader.read(received, passage), context)
                    passage.note_answer(answer)
                    return answer
            except Exception as error:
                await reader.linger(received, error)
                await _refuse(error, context, method, outcome)

    return call


def _stream(
    inner: Callable[[Any, Context], Any], method: str, metrics: RpcMetrics, gate: Gate, reader: _Reader
) -> Callable[[Any, Context], Awaitable[None]]:
    """Writes the responses itself: a call that is ended while it waits for its reader ends here, with its reason."""

    async def call(received: Any, context: Context) -> None:
        with metrics.call(method) as outcome:
            try:
                async with gate.passing(method, context) as passage:
                    answered = inner(await reader.read(received, passage), context)
                    if inspect.isawaitable(answered):
                        # One that writes for itself, such as gRPC's own health service.
                        await answered
                    else:
                        async for response in answered:
                            await context.write(response)
            except Exception as error:
                await reader.linger(received, error)
                await _refuse(error, context, method, outcome)

    return call


async def _refuse(error: Exception, context: Context, method: str, outcome: Outcome) -> None:
    if isinstance(error, grpc.aio.AbortError):
        outcome.code = getattr(context.code(), "name", "UNKNOWN")
        raise error
    if isinstance(error, NotImplementedError):
        error = Unsupported(f"{method} is not implemented here")
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
