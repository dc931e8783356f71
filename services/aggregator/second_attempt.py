"""A round that got too few updates asks other clients, once."""

import time
from collections.abc import Sequence

from sqlalchemy import Connection

from fednano.errors import TooFewClients, TooFewUpdates
from fednano.names import RoundName
from fednano.telemetry import get_logger
from fednano.v1 import run_pb2 as pb
from services.aggregator.run_context import RunContext
from services.aggregator.selection import select_replacements
from services.aggregator.store import clients, rounds
from services.aggregator.store.lineages import start_from_own
from services.aggregator.store.participants import Participation, participations, update_count
from services.aggregator.store.rounds import RoundHead
from services.aggregator.waiting import Outlook, Waits, seconds, state_key

log = get_logger("aggregator.rounds")


class SecondAttempt:
    """Of the rounds of one run. What was accepted stays; who did not answer is replaced."""

    def __init__(self, context: RunContext, config: pb.RunConfig, waits: Waits) -> None:
        self._context, self._config, self._waits = context, config, waits

    async def await_clients(self, head: RoundHead) -> None:
        """Returns once there are enough clients to ask, or the missing updates have come after all, or time is up."""
        name = head.name

        def look(connection: Connection) -> Outlook:
            missing = self._config.min_updates - update_count(connection, name)
            found = len(_candidates(connection, name))
            return Outlook(is_over=found >= missing, words=f"clients {found}/{missing}")

        deadline_s = self._waits.begin((name.number, head.attempt, "clients"), seconds(self._config.join_timeout))
        await self._waits.until(look, deadline_s)

    def begin(self, connection: Connection, head: RoundHead) -> None:
        """Asks the clients that are there. Raises TooFewUpdates after a second attempt, TooFewClients before one."""
        name, least = head.name, self._config.min_updates
        count, candidates = update_count(connection, name), _candidates(connection, name)
        has = f"{name} has {count} of {least} updates"
        if head.attempt > 1:
            raise TooFewUpdates(f"{has} after its second attempt: see who did not answer", name=str(name))
        if count + len(candidates) < least:
            raise TooFewClients(f"{has}, and too few clients are there to try again", name=str(name))
        parts, timeout_s = participations(connection, name), seconds(self._config.round_timeout)
        chosen = select_replacements(
            candidates,
            {part.name.client for part in parts},
            len(parts) - len(merging(parts)),
            seed=self._config.train.seed,
            number=name.number,
        )
        rounds.retry_round(connection, name, chosen, deadline_s=time.time() + timeout_s)
        if self._config.method == pb.METHOD_LOCAL:
            start_from_own(connection, name, head.base_sha256)
        self._waits.begin(state_key(name, 2, pb.Round.STATE_TRAINING), timeout_s)
        log.warning("trying_again", round=str(name), clients=chosen)


def merging(parts: Sequence[Participation]) -> dict[str, str]:
    """The clients whose updates are merged, and their adapters' digests."""
    return {part.name.client: part.adapter_sha256 for part in parts if part.is_updated}


def _candidates(connection: Connection, name: RoundName) -> list[str]:
    """Active clients that have not answered the round."""
    answered = set(merging(participations(connection, name)))
    return [client for client in clients.active_client_ids(connection, name.run) if client not in answered]
