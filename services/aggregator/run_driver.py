"""One task a run that moves it from state to state. All it knows is in the database, so it can begin anew anywhere."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from structlog.contextvars import bind_contextvars
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from fednano.errors import InternalFault, WireError
from fednano.names import RunName
from fednano.rpc.retry import is_retryable
from fednano.telemetry import get_logger
from fednano.v1 import run_pb2 as pb
from services.aggregator.pruning import UpdatePruning
from services.aggregator.round_phases import RoundPhases
from services.aggregator.run_context import RunContext
from services.aggregator.steering import end_run
from services.aggregator.store import rounds, runs
from services.aggregator.store.rounds import RoundHead
from services.aggregator.upload_drafts import clear_drafts

log = get_logger("aggregator.driver")
LONGEST_BACK_OFF_S = 5.0
ResultT = TypeVar("ResultT")


class RunDriver:
    """Drives one run from where the database says it is until it has ended."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._pruning = UpdatePruning(context)

    async def drive(self) -> None:
        """Returns when the run has ended, which it does whatever happens; only a cancelled driver leaves it open."""
        bind_contextvars(run=str(RunName(run=self._context.run)))
        log.info("driving")
        life = asyncio.create_task(self._live(), name=f"life of {self._context.run}")
        try:
            await asyncio.wait([life])
        finally:
            life.cancel()
            await asyncio.wait([life])
        fault = None if life.cancelled() else life.exception()
        if fault is not None:
            log.error("driver_failed", error=type(fault).__name__, exc_info=fault)
            failure = InternalFault("an unexpected fault ended the run; the aggregator's log has the trace")
            await _patiently(lambda: self._fail(failure))
        await _patiently(self._tidy)

    async def _live(self) -> None:
        phases = await _patiently(self._phases)
        while await _patiently(lambda: self._move_on(phases)):
            self._context.changes.notify_tasks(self._context.run)

    async def _phases(self) -> RoundPhases:
        with self._context.store.transaction() as connection:
            return RoundPhases(self._context, runs.load_run(connection, self._context.run).config)

    async def _move_on(self, phases: RoundPhases) -> bool:
        """One step of the run's life; False once it has ended. Any WireError that cannot be waited out ends it."""
        with self._context.store.transaction() as connection:
            run = runs.load_run(connection, self._context.run)
            newest = rounds.newest_round(connection, self._context.run)
        if run.state in runs.ENDED:
            return False
        try:
            await self._step(phases, run, newest)
        except WireError as failure:
            if failure.retryable:
                raise
            await self._fail(failure)
        return True

    async def _step(self, phases: RoundPhases, run: pb.Run, newest: RoundHead | None) -> None:
        if newest is not None and newest.state == pb.Round.STATE_TRAINING:
            await phases.await_updates(newest)
        elif newest is not None and newest.state == pb.Round.STATE_MERGING:
            await phases.merge(newest)
        elif newest is not None and newest.state == pb.Round.STATE_EVALUATING:
            await phases.await_evaluations(newest)
        elif newest is not None and newest.name.number >= run.config.round_count:
            self._end(pb.Run.STATE_SUCCEEDED)
        elif run.state == pb.Run.STATE_PAUSED:
            await phases.await_resume()
        elif run.state == pb.Run.STATE_PENDING:
            if await phases.await_clients(0):
                self._start()
        else:
            await self._pruning.prune()
            number, base = (0, "") if newest is None else (newest.name.number + 1, newest.merged_sha256)
            await phases.open(number, base)

    def _start(self) -> None:
        with self._context.store.transaction() as connection:
            runs.start_run(connection, self._context.run)

    def _end(self, state: "pb.Run.State.ValueType", failure: WireError | None = None) -> None:
        with self._context.store.transaction() as connection:
            end_run(connection, self._context.run, state, failure)

    async def _fail(self, failure: WireError) -> None:
        """Ends the run, and the round it is in, as failed."""
        log.warning("run_failed", error=type(failure).__name__, message=failure.message)
        self._end(pb.Run.STATE_FAILED, failure)

    async def _tidy(self) -> None:
        """Tells everyone that the run has ended, and drops what nobody needs any more."""
        run = self._context.run
        self._context.changes.notify_tasks(run)
        with self._context.store.transaction() as connection:
            self._context.leases.flush(connection, run)
            newest = rounds.newest_round(connection, run)
        self._context.leases.forget(run)
        if newest is not None:
            await asyncio.to_thread(clear_drafts, self._context.state, newest.name)
        await self._pruning.prune()


async def _patiently(action: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """The result of ``action``, made anew for as long as the stores are away or full: no reason for a run to fail."""

    async def attempt() -> ResultT:
        return await action()

    def say(state: RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        log.warning("waiting_for_store", attempt=state.attempt_number, why=str(failure))

    back_off = wait_random_exponential(multiplier=0.2, max=LONGEST_BACK_OFF_S)
    retrying = AsyncRetrying(retry=retry_if_exception(is_retryable), wait=back_off, before_sleep=say, reraise=True)
    return await retrying(attempt)
