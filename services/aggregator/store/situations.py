"""All that decides what one client should do, read at once: each poll and each heartbeat of each client asks for it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from fednano.errors import ResourceNotFound
from fednano.names import ClientName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.rounds import RoundHead, to_head
from services.aggregator.store.schema import CLIENTS, PARTICIPANTS, ROUNDS, RUNS


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A client, its run, the run's newest round, and the client's part in it. The last two may not be there."""

    client: ClientName
    client_state: "pb.Client.State.ValueType"
    run_state: "pb.Run.State.ValueType"
    newest: RoundHead | None
    part_state: "pb.Participant.State.ValueType | None"


def load_situation(connection: Connection, client: ClientName) -> Situation:
    """Raises ResourceNotFound, naming the client."""
    mine = (CLIENTS.c.run == client.run) & (CLIENTS.c.client == client.client)
    row = connection.execute(_situations().where(mine)).one_or_none()
    if row is None:
        raise ResourceNotFound(f"{client} never joined its run: call JoinRun first", name=str(client))
    return Situation(
        client=client,
        client_state=row.client_state,
        run_state=row.run_state,
        newest=None if row.number is None else to_head(row),
        part_state=row.part_state,
    )


def _situations() -> Select[Any]:
    """Every client beside its run, the run's newest round and its part in that."""
    in_round = (PARTICIPANTS.c.run == ROUNDS.c.run) & (PARTICIPANTS.c.number == ROUNDS.c.number)
    return select(
        CLIENTS.c.state.label("client_state"),
        RUNS.c.state.label("run_state"),
        PARTICIPANTS.c.state.label("part_state"),
        ROUNDS,
    ).select_from(
        CLIENTS.join(RUNS, RUNS.c.run == CLIENTS.c.run)
        .outerjoin(ROUNDS, (ROUNDS.c.run == RUNS.c.run) & (ROUNDS.c.number == RUNS.c.current_round))
        .outerjoin(PARTICIPANTS, in_round & (PARTICIPANTS.c.client == CLIENTS.c.client))
    )
