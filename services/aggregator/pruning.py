"""Deleting what clients sent in rounds that were merged long ago: nothing reads it again, and a disk is finite."""

import asyncio
from collections.abc import Sequence

from fednano.errors import WireError
from fednano.telemetry import get_logger
from fednano.v1 import run_pb2 as pb
from services.aggregator.run_context import RunContext
from services.aggregator.store import rounds, runs
from services.aggregator.store.prunable import needed_sha256s, update_sha256s

log = get_logger("aggregator.pruning")
# Looked up and deleted at a time: uploads wait meanwhile.
BATCH = 200


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
        with self._context.store.transaction() as connection:
            old = update_sha256s(connection, run, self._done + 1, last)
        deleted_bytes = sum(self._delete(old[start : start + BATCH], last) for start in range(0, len(old), BATCH))
        log.info("pruned", rounds=f"{self._done + 1} to {last}", deleted_bytes=deleted_bytes)
        self._done = last

    def _delete(self, sha256s: Sequence[str], last: int) -> int:
        def find_needed(free: Sequence[str]) -> set[str]:
            with self._context.store.transaction() as connection:
                return needed_sha256s(connection, free, self._context.run, last)

        return self._context.artifacts.delete(sha256s, find_needed)
