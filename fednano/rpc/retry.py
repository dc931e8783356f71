"""Calling again, with jittered back-off, what may succeed later and may safely be done twice."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc.aio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential

from fednano.errors import FednanoError, PeerUnavailable, ServerBusy, WireError
from fednano.rpc.status import from_rpc_error
from fednano.telemetry import get_logger

log = get_logger("rpc")
ResultT = TypeVar("ResultT")
Doubt = Callable[[], Awaitable[FednanoError | None]]

BACK_OFF = wait_random_exponential(multiplier=0.2, max=5.0)
# A peer may ask for patience, but not for any amount of it.
LONGEST_RETRY_AFTER_S = 60.0


async def call_with_retry(
    call: Callable[[], Awaitable[ResultT]],
    *,
    peer: str,
    what: str,
    give_up_after_s: float,
    before_retry: Callable[[], None] | None = None,
    doubt: Doubt | None = None,
) -> ResultT:
    """The result of ``call``, made anew after each retryable failure until ``give_up_after_s`` seconds have passed.

    ``call`` must be idempotent. Raises the last failure as a WireError. What is waited for is logged once an attempt.
    ``doubt`` is asked where the peer cannot be reached: an error that it knows is raised at once, in place of waiting.
    """

    def say(state: RetryCallState) -> None:
        if before_retry is not None:
            before_retry()
        pause_s = state.next_action.sleep if state.next_action else 0.0
        log.warning(
            "retrying",
            what=what,
            peer=peer,
            attempt=state.attempt_number,
            pause_s=round(pause_s, 2),
            why=str(_failure(state)),
        )

    retrying = AsyncRetrying(
        retry=retry_if_exception(is_retryable),
        wait=retry_pause_s,
        stop=stop_after_delay(give_up_after_s),
        before_sleep=say,
        reraise=True,
    )
    return await retrying(_attempt, call, peer, doubt)


async def call_once(call: Callable[[], Awaitable[ResultT]], *, peer: str) -> ResultT:
    """The result of ``call``, its failure as a WireError.

    gRPC raises CancelledError also where it was the peer, or the channel, that cancelled: then the peer is lost, and
    only a task that is itself being cancelled sees the CancelledError.
    """
    try:
        return await call()
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, peer) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise PeerUnavailable(f"{peer} cancelled the call", peer=peer) from None


async def _attempt(call: Callable[[], Awaitable[ResultT]], peer: str, doubt: Doubt | None) -> ResultT:
    try:
        return await call_once(call, peer=peer)
    except PeerUnavailable:
        known = await doubt() if doubt is not None else None
        if known is None:
            raise
    raise known


def is_retryable(error: BaseException) -> bool:
    """Whether the same call may succeed later, unchanged."""
    return isinstance(error, WireError) and error.retryable


def retry_pause_s(state: RetryCallState) -> float:
    """Seconds until the next attempt: random, growing, and after what a busy peer asked for."""
    failure = _failure(state)
    asked_s = min(failure.retry_after_s, LONGEST_RETRY_AFTER_S) if isinstance(failure, ServerBusy) else 0.0
    return asked_s + BACK_OFF(state)


def _failure(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
