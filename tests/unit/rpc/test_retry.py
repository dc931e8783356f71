"""When a call is made again, after how long, and whose cancelling ends it."""

import asyncio
import time

import grpc
import grpc.aio
import pytest

from fednano.errors import FieldInvalid, PeerUnavailable, ServerBusy
from fednano.rpc.retry import call_once, call_with_retry

NONE = grpc.aio.Metadata()


class Failing:
    """Raises its errors one after the other, then answers with how often it was called."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


def lost(code: grpc.StatusCode, words: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, NONE, NONE, details=words)


async def test_a_busy_peer_is_left_alone_as_long_as_it_asked() -> None:
    start_s = time.monotonic()
    call = Failing(ServerBusy("full", retry_after_s=0.8))
    assert await call_with_retry(call, peer="p", what="w", give_up_after_s=5) == 2
    assert 0.8 <= time.monotonic() - start_s < 3


async def test_a_torn_connection_and_a_peer_that_cancels_are_tried_again() -> None:
    call = Failing(lost(grpc.StatusCode.INTERNAL, "Internal error from Core"), asyncio.CancelledError())
    assert await call_with_retry(call, peer="p", what="w", give_up_after_s=5) == 3


async def test_a_refusal_is_final() -> None:
    call = Failing(FieldInvalid("wrong", field="x"))
    with pytest.raises(FieldInvalid):
        await call_with_retry(call, peer="p", what="w", give_up_after_s=5)
    assert call.calls == 1


async def test_a_call_that_the_peer_cancels_is_a_lost_peer() -> None:
    with pytest.raises(PeerUnavailable, match="the aggregator cancelled the call"):
        await call_once(Failing(asyncio.CancelledError()), peer="the aggregator")


async def test_a_task_that_is_cancelled_ends_and_calls_no_more() -> None:
    call = Failing(*[PeerUnavailable("gone")] * 100)
    task = asyncio.create_task(call_with_retry(call, peer="p", what="w", give_up_after_s=60))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.calls < 20
