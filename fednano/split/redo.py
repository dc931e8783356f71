"""Doing a pass again where its session was lost: the language model is frozen, so the second answer is the first."""

import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
)

from fednano.errors import InternalFault, StepUnknown, WireError
from fednano.rpc.retry import is_retryable, retry_pause_s
from fednano.telemetry import get_logger

log = get_logger("client.split")
ResultT = TypeVar("ResultT")

# What gRPC itself says when a stream is torn: no service of ours made these.
TORN = {"INTERNAL", "CANCELLED", "UNKNOWN"}


def is_session_lost(error: BaseException) -> bool:
    """Whether a new session can answer what this one did not."""
    torn = isinstance(error, InternalFault) and error.facts.get("code") in TORN
    return is_retryable(error) or isinstance(error, StepUnknown) or torn


def redo(
    attempt: Callable[[], ResultT],
    *,
    what: str,
    give_up_after_s: float,
    abandoned: threading.Event,
    before_retry: Callable[[], None] | None = None,
) -> ResultT:
    """The result of ``attempt``, made anew after each lost session; blocks the calling thread.

    Raises the last failure after ``give_up_after_s`` seconds, or as soon as ``abandoned`` is set.
    """

    def say(state: RetryCallState) -> None:
        if before_retry is not None:
            before_retry()
        failure = state.outcome.exception() if state.outcome else None
        log.warning("session_lost", what=what, attempt=state.attempt_number, why=_message(failure))

    retrying = Retrying(
        retry=retry_if_exception(is_session_lost),
        wait=retry_pause_s,
        stop=stop_any(stop_after_delay(give_up_after_s), stop_when_event_set(abandoned)),
        sleep=sleep_using_event(abandoned),
        before_sleep=say,
        reraise=True,
    )
    return retrying(attempt)


def _message(failure: BaseException | None) -> str:
    return failure.message if isinstance(failure, WireError) else str(failure)
