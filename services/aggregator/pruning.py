"""Deleting what clients sent in rounds that were merged long ago: nothing reads it again, and a disk is finite."""

import asyncio

from fednano.errors import WireError
from fednano.telemetry import get_logger
from fednano.v1 import run_pb2 as pb
from services.aggregator.run_context import RunContext
from services.aggregator.store import rounds, runs
from services.aggregator.store.prunable import needed_sha256s, update_sha256s

log = get_logger("aggregator.pruning")


class UpdatePruning:
    """Of one run. Global adapters stay, and so do digests, metrics and Gram matrices."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        # Rounds up to here are done with; from the beginning after a restart, which may have cut a pruning short.
        self._done = 0

    async def prune(self) -> None:
        """Deletes the updates of all rounds but the newest ``keep_update_rounds`` that have ended. What fails is logged
        and left to the next time: no reason for a run to wait.
        """
        if not self._context.keep_update_rounds:
            return
        try:
            await asyncio.to_thread(self._prune)
        except WireError as failure:
            log.warning("not_pruned", why=failure.message)

    def _prune(self) -> None:
        run = self._context.run
        with self._context.store.transaction() as connection:
            newest = rounds.newest_round(connection, run)
            # There, what a client sent is its result.
            is_local = runs.load_run(connection, run).config.method == pb.METHOD_LOCAL
        last = 0 if newest is None else newest.name.number - self._context.keep_update_rounds
        if newest is not None and newest.state not in (pb.Round.STATE_SUCCEEDED, pb.Round.STATE_FAILED):
            last -= 1
        if is_local or last <= self._done:
            return
        first = self._done + 1
        with self._context.store.transaction() as connection:
            old = update_sha256s(connection, run, first, last)

        def find_needed() -> set[str]:
            with self._context.store.transaction() as connection:
                return needed_sha256s(connection, run, first, last)

        deleted_bytes = self._context.artifacts.delete(sorted(old), find_needed)
        log.info("pruned", rounds=f"{first} to {last}", deleted_bytes=deleted_bytes)
        self._done = last
