"""A round from its opening to its end. Each phase waits or computes, then moves the round on in one transaction."""

import asyncio
import time

from sqlalchemy import Connection

from fednano.errors import TooFewClients
from fednano.names import ClientName, RoundName
from fednano.telemetry import get_logger
from fednano.tracing import span
from fednano.v1 import run_pb2 as pb
from services.aggregator.heap import return_memory
from services.aggregator.merging import initial_content, merge_updates_of, merged
from services.aggregator.round_verdict import is_evaluation_due, is_evaluation_over, is_training_over
from services.aggregator.run_context import RunContext
from services.aggregator.second_attempt import SecondAttempt, merging
from services.aggregator.selection import needed_clients, round_size, select_clients
from services.aggregator.store import clients, rounds, runs
from services.aggregator.store.lineages import gram_sha256s, start_from_own
from services.aggregator.store.participants import participations, record_merge_metrics, update_count
from services.aggregator.store.rounds import RoundHead
from services.aggregator.store.standings import evaluation_standing, training_standing
from services.aggregator.upload_drafts import clear_drafts
from services.aggregator.waiting import Outlook, Waits, seconds, state_key

log = get_logger("aggregator.rounds")

HELD = runs.ENDED | {pb.Run.STATE_PAUSED}


class RoundPhases:
    """Of one run. Every method may be called again after a fault or a restart, and then goes on."""

    def __init__(self, context: RunContext, config: pb.RunConfig) -> None:
        self._context, self._config = context, config
        self._waits = Waits(context)
        self._second = SecondAttempt(context, config, self._waits)
        self._round_timeout_s = seconds(config.round_timeout)
        self._join_timeout_s = seconds(config.join_timeout)

    async def await_resume(self) -> None:
        """Returns when an operator has let the run go on, or ended it: the one wait that only a person ends."""
        run = self._context.run
        # Whoever is waited for afterwards has the whole time again.
        self._waits.forget()

        def look(connection: Connection) -> Outlook:
            return Outlook(is_over=runs.run_state(connection, run) != pb.Run.STATE_PAUSED, words="resume")

        await self._waits.until(look, None)

    async def await_clients(self, number: int) -> bool:
        """Whether round ``number`` may begin; False where the run was paused or has ended. Raises TooFewClients."""
        run, needed = self._context.run, needed_clients(self._config, number)

        def look(connection: Connection) -> Outlook:
            count = clients.active_client_count(connection, run)
            is_held = runs.run_state(connection, run) in HELD
            return Outlook(is_over=count >= needed or is_held, words=f"clients {count}/{needed}")

        await self._waits.until(look, self._waits.begin((number, 0, "clients"), self._join_timeout_s))
        with self._context.store.transaction() as connection:
            if runs.run_state(connection, run) in HELD:
                return False
            count = clients.active_client_count(connection, run)
        if count < needed:
            what = f"{count} of {needed} clients were there for round {number}"
            raise TooFewClients(f"{what} within {self._join_timeout_s:g} s: start more, or ask for fewer", name=run)
        return True

    async def open(self, number: int, base_sha256: str) -> None:
        """Begins round ``number`` with clients drawn from those who are there. Round 0 makes the first adapter."""
        is_first = number == 0
        if is_first:
            base_sha256 = await asyncio.to_thread(self._context.artifacts.put, initial_content(self._config))
        if not await self.await_clients(number):
            return
        name = RoundName(run=self._context.run, number=number)
        state = pb.Round.STATE_EVALUATING if is_first else pb.Round.STATE_TRAINING
        with self._context.store.transaction() as connection:
            active = clients.active_client_ids(connection, self._context.run)
            rounds.open_round(
                connection,
                name,
                state=state,
                clients=select_clients(
                    active, round_size(self._config, len(active)), seed=self._config.train.seed, number=number
                ),
                base_sha256=base_sha256,
                merged_sha256=base_sha256 if is_first else "",
                deadline_s=time.time() + self._round_timeout_s,
            )
            if self._config.method == pb.METHOD_LOCAL and not is_first:
                start_from_own(connection, name, base_sha256)
            self._wait_no_more(connection)
        self._waits.forget()
        self._waits.begin(state_key(name, 1, state), self._round_timeout_s)

    async def await_updates(self, head: RoundHead) -> None:
        """Until the round can be merged, or has to be tried again. Raises TooFewUpdates and TooFewClients."""

        def look(connection: Connection) -> Outlook:
            standing = training_standing(connection, head.name)
            is_over = is_training_over(standing, min_updates=self._config.min_updates, attempt=head.attempt)
            return Outlook(is_over=is_over, words=f"updates {standing.answered}/{standing.asked}")

        await self._waits.until(look, await self._enter(head, head.base_sha256))
        if not self._merge_if_enough(head.name):
            await self._try_again(head)

    async def merge(self, head: RoundHead) -> None:
        """Makes the round's global adapter. Killed on the way, it makes the same one again."""
        name, artifacts = head.name, self._context.artifacts
        await asyncio.to_thread(clear_drafts, self._context.state, name)
        await asyncio.to_thread(return_memory)
        with self._context.store.transaction() as connection:
            parts = participations(connection, name)
            grams = gram_sha256s(connection, name.run)
        if len(merging(parts)) < self._config.min_updates:
            # Clients were evicted after the round had enough.
            await self._try_again(head)
            return
        updates = await asyncio.to_thread(merge_updates_of, parts, artifacts, grams)
        base = await asyncio.to_thread(artifacts.verified_path, head.base_sha256)
        with span("merge", round=str(name), updates=len(merging(parts))):
            result = await asyncio.to_thread(merged, updates, base, self._config)
        sha256 = await asyncio.to_thread(artifacts.put, result.content)
        with self._context.store.transaction() as connection:
            is_stale = merging(participations(connection, name)) != merging(parts)
            if is_stale or self._context.has_ended(connection):
                return
            measured = {ClientName.parse(client): metrics for client, metrics in result.client_metrics.items()}
            record_merge_metrics(connection, name, measured)
            rounds.set_merged(connection, name, sha256, result.round_metrics)
            self._evaluate_or_end(connection, head)
        log.info("merged", round=str(name), updates=len(updates), sha256=sha256)

    async def await_evaluations(self, head: RoundHead) -> None:
        """Until all evaluations are here, or it is time to go on with those that are."""

        def look(connection: Connection) -> Outlook:
            standing = evaluation_standing(connection, head.name)
            words = f"evaluations {standing.answered}/{standing.asked}"
            return Outlook(is_over=is_evaluation_over(standing), words=words)

        await self._waits.until(look, await self._enter(head, head.merged_sha256))
        with self._context.store.transaction() as connection:
            if not self._context.has_ended(connection):
                rounds.set_round_state(connection, head.name, pb.Round.STATE_SUCCEEDED)
                self._wait_no_more(connection)

    async def _enter(self, head: RoundHead, sha256: str) -> float:
        """The deadline of the phase, whose adapter is there and whole; raises ArtifactCorrupt where it is not."""
        await asyncio.to_thread(self._context.artifacts.verified_path, sha256)
        key = state_key(head.name, head.attempt, head.state)
        if not self._waits.is_begun(key):
            with self._context.store.transaction() as connection:
                rounds.set_deadline(connection, head.name, time.time() + self._round_timeout_s)
        return self._waits.begin(key, self._round_timeout_s)

    def _merge_if_enough(self, name: RoundName) -> bool:
        """Moves a round on that has enough updates; True too where the run has ended."""
        with self._context.store.transaction() as connection:
            if self._context.has_ended(connection):
                return True
            if update_count(connection, name) < self._config.min_updates:
                return False
            rounds.set_round_state(connection, name, pb.Round.STATE_MERGING)
            self._wait_no_more(connection)
        return True

    async def _try_again(self, head: RoundHead) -> None:
        """Asks other clients in the place of those that did not answer, once they are there; the second time, fails."""
        if head.attempt == 1:
            await self._second.await_clients(head)
            if self._merge_if_enough(head.name):
                return
        with self._context.store.transaction() as connection:
            if not self._context.has_ended(connection):
                self._second.begin(connection, head)
                self._wait_no_more(connection)

    def _evaluate_or_end(self, connection: Connection, head: RoundHead) -> None:
        state = pb.Round.STATE_SUCCEEDED
        if is_evaluation_due(self._config, head.name.number):
            state = pb.Round.STATE_EVALUATING
            rounds.set_deadline(connection, head.name, time.time() + self._round_timeout_s)
            self._waits.begin(state_key(head.name, head.attempt, state), self._round_timeout_s)
        rounds.set_round_state(connection, head.name, state)

    def _wait_no_more(self, connection: Connection) -> None:
        runs.set_waiting_for(connection, self._context.run, "")
