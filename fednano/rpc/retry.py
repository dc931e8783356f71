"""Calling again, with jittered back-off, what may succeed later and may safely be done twice."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc.aio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential

from fednano.errors import WireError
from fednano.rpc.status import from_rpc_error
from fednano.telemetry import get_logger

log = get_logger("rpc")
ResultT = TypeVar("ResultT")


async def call_with_retry(
    call: Callable[[], Awaitable[ResultT]], *, peer: str, what: str, give_up_after_s: float
) -> ResultT:
    """The result of ``call``, made anew after each retryable failure until ``give_up_after_s`` seconds have passed.

    ``call`` must be idempotent. Raises the last failure as a WireError. What is waited for is logged once an attempt.
    """

    async def attempt() -> ResultT:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer) from None

    def say(state: RetryCallState) -> None:
        pause_s = state.next_action.sleep if state.next_action else 0.0
        failure = state.outcome.exception() if state.outcome else None
        log.warning(
            "retrying", what=what, peer=peer, attempt=state.attempt_number, pause_s=round(pause_s, 2), why=str(failure)
        )

    retrying = AsyncRetrying(
        retry=retry_if_exception(is_retryable),
        wait=wait_random_exponential(multiplier=0.2, max=5.0),
        stop=stop_after_delay(give_up_after_s),
        before_sleep=say,
        reraise=True,
    )
    return await retrying(attempt)


def is_retryable(error: BaseException) -> bool:
    """Whether the same call may succeed later, unchanged."""
    return isinstance(error, WireError) and error.retryable
