"""One task a run that moves it from state to state. All it knows is in the database, so it can begin anew anywhere."""

import asyncio
import time
from collections.abc import Callable

from sqlalchemy import Connection

from fednano.errors import TooFewClients, TooFewUpdates, WireError
from fednano.names import RoundName
from fednano.telemetry import get_logger
from fednano.v1 import run_pb2 as pb
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.changes import Changes, wait_for
from services.aggregator.merging import initial_content, merge_updates_of, merged
from services.aggregator.selection import select_clients
from services.aggregator.store import clients, rounds, runs
from services.aggregator.store.database import Store
from services.aggregator.store.participants import Participation, participations

log = get_logger("aggregator.driver")
# A driver looks at leases at least this often while it waits.
LONGEST_WAIT_S = 1.0


class RunDriver:
    """Drives one run from where the database says it is until it has ended."""

    def __init__(self, run: str, store: Store, artifacts: ArtifactStore, changes: Changes, lease_s: float) -> None:
        self._run, self._store, self._artifacts, self._changes = run, store, artifacts, changes
        self._lease_s = lease_s
        # Nobody can be lost for the time in which this process was not there to be called.
        self._start_time_s = time.time()

    async def drive(self) -> None:
        """Returns when the run has ended; a WireError on the way is the run's failure."""
        log.info("driving", run=self._run)
        try:
            while await self._move_on():
                self._changes.notify(self._run)
        except WireError as failure:
            self.fail(failure)
        self._changes.notify(self._run)

    def fail(self, failure: WireError) -> None:
        """Ends the run, and the round it is in, as failed."""
        log.warning("run_failed", run=self._run, error=type(failure).__name__, message=failure.message)
        with self._store.transaction() as connection:
            newest = rounds.newest_round(connection, self._run)
            if newest is not None and newest.state != pb.Round.STATE_SUCCEEDED:
                rounds.set_round_state(connection, RoundName.parse(newest.name), pb.Round.STATE_FAILED)
            runs.end_run(connection, self._run, pb.Run.STATE_FAILED, failure)
        self._changes.notify(self._run)

    async def _move_on(self) -> bool:
        """One step of the run's life; False once it has ended."""
        with self._store.transaction() as connection:
            run = runs.load_run(connection, self._run)
            newest = rounds.newest_round(connection, self._run)
        if run.state in runs.ENDED:
            return False
        if run.state == pb.Run.STATE_PENDING:
            await self._await_clients(run)
        elif newest is None:
            await self._open_round(run.config, 0, "")
        elif newest.state == pb.Round.STATE_TRAINING:
            await self._await_updates(run.config, newest)
        elif newest.state == pb.Round.STATE_MERGING:
            await self._merge(run.config, newest)
        elif newest.state == pb.Round.STATE_EVALUATING:
            await self._await_evaluations(run.config, newest)
        elif newest.number < run.config.round_count:
            await self._open_round(run.config, newest.number + 1, newest.merged_adapter_sha256)
        else:
            with self._store.transaction() as connection:
                runs.end_run(connection, self._run, pb.Run.STATE_SUCCEEDED)
        return True

    async def _await_clients(self, run: pb.Run) -> None:
        wanted = run.config.clients_per_round
        joined = await self._until_active(wanted, run.config.join_timeout.ToMilliseconds() / 1000)
        if joined < wanted:
            raise TooFewClients(f"{joined} of {wanted} clients joined in time: start more, or ask for fewer")
        with self._store.transaction() as connection:
            if not self._is_ended(connection):
                runs.start_run(connection, self._run)

    async def _open_round(self, config: pb.RunConfig, number: int, base_sha256: str) -> None:
        timeout_s = config.round_timeout.ToMilliseconds() / 1000
        active = await self._until_active(config.min_updates, timeout_s)
        if active < config.min_updates:
            raise TooFewClients(f"{active} clients are active, but round {number} needs {config.min_updates}")
        is_first = number == 0
        if is_first:
            base_sha256 = self._artifacts.put(initial_content(config))
        with self._store.transaction() as connection:
            if self._is_ended(connection):
                return
            rounds.open_round(
                connection,
                RoundName(run=self._run, number=number),
                state=pb.Round.STATE_EVALUATING if is_first else pb.Round.STATE_TRAINING,
                clients=select_clients(
                    clients.active_client_ids(connection, self._run),
                    config.clients_per_round,
                    seed=config.train.seed,
                    number=number,
                ),
                base_sha256=base_sha256,
                merged_sha256=base_sha256 if is_first else "",
                deadline_s=time.time() + timeout_s,
            )

    async def _await_updates(self, config: pb.RunConfig, newest: pb.Round) -> None:
        name = RoundName.parse(newest.name)
        await self._until_answered(config, name, lambda part: part.is_updated, config.min_updates)
        with self._store.transaction() as connection:
            if self._is_ended(connection):
                return
            count = sum(part.is_updated for part in participations(connection, name))
            if count >= config.min_updates:
                rounds.set_round_state(connection, name, pb.Round.STATE_MERGING)
                return
        raise TooFewUpdates(f"{name} has {count} updates at its deadline, but needs {config.min_updates}")

    async def _merge(self, config: pb.RunConfig, newest: pb.Round) -> None:
        name = RoundName.parse(newest.name)
        with self._store.transaction() as connection:
            parts = participations(connection, name)
        updates = await asyncio.to_thread(merge_updates_of, parts, self._artifacts)
        base = await asyncio.to_thread(self._artifacts.verified_path, newest.base_adapter_sha256)
        result = await asyncio.to_thread(merged, updates, base, config)
        sha256 = await asyncio.to_thread(self._artifacts.put, result.content)
        with self._store.transaction() as connection:
            if self._is_ended(connection):
                return
            rounds.set_merged(connection, name, sha256)
            if _is_evaluation_due(config, newest.number):
                rounds.set_round_state(connection, name, pb.Round.STATE_EVALUATING)
            else:
                rounds.set_round_state(connection, name, pb.Round.STATE_SUCCEEDED)
        log.info("merged", round=str(name), updates=len(updates))

    async def _await_evaluations(self, config: pb.RunConfig, newest: pb.Round) -> None:
        name = RoundName.parse(newest.name)
        await self._until_answered(config, name, lambda part: part.is_evaluated, 0)
        with self._store.transaction() as connection:
            if not self._is_ended(connection):
                rounds.set_round_state(connection, name, pb.Round.STATE_SUCCEEDED)

    async def _until_active(self, wanted: int, timeout_s: float) -> int:
        """Waits until ``wanted`` clients are active, the run ended or time is up; returns how many are active."""

        def count(connection: Connection) -> int:
            return len(clients.active_client_ids(connection, self._run))

        await self._until(lambda connection: count(connection) >= wanted, time.time() + timeout_s)
        with self._store.transaction() as connection:
            # A run that was cancelled lacks nothing: the next step sees that it has ended.
            return wanted if self._is_ended(connection) else count(connection)

    async def _until_answered(
        self, config: pb.RunConfig, name: RoundName, is_done: Callable[[Participation], bool], enough: int
    ) -> None:
        """Waits for every participant, except for clients that are gone where ``enough`` have answered."""
        deadline_s = time.time() + config.round_timeout.ToMilliseconds() / 1000
        with self._store.transaction() as connection:
            rounds.set_deadline(connection, name, deadline_s)

        def is_answered(connection: Connection) -> bool:
            parts = participations(connection, name)
            active = set(clients.active_client_ids(connection, self._run))
            done = sum(is_done(part) for part in parts)
            awaited = any(not is_done(part) and part.name.client in active for part in parts)
            return done == len(parts) or (done >= enough and not awaited)

        await self._until(is_answered, deadline_s)

    async def _until(self, holds: Callable[[Connection], bool], deadline_s: float) -> None:
        while True:
            ticket = self._changes.ticket(self._run)
            with self._store.transaction() as connection:
                self._lose_silent_clients(connection)
                left_s = deadline_s - time.time()
                if self._is_ended(connection) or holds(connection) or left_s <= 0:
                    return
            await wait_for(ticket, min(left_s, LONGEST_WAIT_S))

    def _lose_silent_clients(self, connection: Connection) -> None:
        silent_since_s = time.time() - self._lease_s
        if silent_since_s >= self._start_time_s:
            clients.lose_silent_clients(connection, self._run, silent_since_s)

    def _is_ended(self, connection: Connection) -> bool:
        return runs.load_run(connection, self._run).state in runs.ENDED


def _is_evaluation_due(config: pb.RunConfig, number: int) -> bool:
    every = config.evaluate.every_rounds
    return number == config.round_count or (every > 0 and number % every == 0)
