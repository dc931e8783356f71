"""A run's events in order and each once, over as many streams as it takes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import grpc.aio

from fednano.errors import NoProgress, PeerUnavailable, WireError
from fednano.rpc.retry import is_retryable
from fednano.rpc.status import from_rpc_error
from fednano.v1 import run_pb2, run_service_pb2

Stream = grpc.aio.UnaryStreamCall[run_service_pb2.WatchEventsRequest, run_service_pb2.WatchEventsResponse]

RECONNECT_PAUSE_S = 0.3
# A stream without an event for so long is opened anew: it may be one that nobody writes to any more.
QUIET_STREAM_S = 120.0
ENDED = (run_pb2.Run.STATE_SUCCEEDED, run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED)


async def events_until_end(
    watch: Callable[[int], Stream],
    has_ended: Callable[[], Awaitable[bool]],
    *,
    peer: str,
    after_sequence: int,
    silence_s: float | None,
    say: Callable[[str], None] | None,
) -> AsyncGenerator[run_pb2.Event, None]:
    """``watch`` opens a stream after a sequence; ``has_ended`` asks the aggregator, waiting for one that is away."""
    last, heard_s = after_sequence, time.monotonic()
    while True:
        try:
            async with aclosing(_events_of(watch(last), peer)) as events:
                async for event in events:
                    if event.sequence > last:
                        last, heard_s = event.sequence, time.monotonic()
                        yield event
                    if event.run.state in ENDED:
                        return
            # The stream's own end: if the run has ended, all of its events were sent.
            if await has_ended():
                return
        except WireError as failure:
            if not is_retryable(failure):
                raise
            if say is not None and isinstance(failure, PeerUnavailable):
                say(f"lost {peer} after event {last}: trying again")
        if silence_s is not None and time.monotonic() - heard_s > silence_s:
            raise NoProgress(f"no event for {silence_s:g} s; see the logs of the parts")
        await asyncio.sleep(RECONNECT_PAUSE_S)
        await has_ended()


async def _events_of(stream: Stream, peer: str) -> AsyncGenerator[run_pb2.Event, None]:
    """Until the stream's own end. Raises PeerUnavailable where it is lost, NoProgress where it is quiet for long."""
    try:
        while True:
            async with asyncio.timeout(QUIET_STREAM_S):
                answer = await stream.read()
            if not isinstance(answer, run_service_pb2.WatchEventsResponse):
                return
            yield answer.event
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, peer) from None
    except asyncio.CancelledError:
        # gRPC raises this also where it was the peer that cancelled: an aggregator that stops.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise PeerUnavailable(f"{peer} cancelled the stream", peer=peer) from None
    except TimeoutError:
        raise NoProgress(f"no event for {QUIET_STREAM_S:g} s") from None
    finally:
        stream.cancel()
