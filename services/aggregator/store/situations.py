"""All that decides what one client should do, read at once: each poll and each heartbeat of each client asks for it."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from fednano.errors import ResourceNotFound
from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.rounds import RoundHead
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
    in_round = (PARTICIPANTS.c.run == ROUNDS.c.run) & (PARTICIPANTS.c.number == ROUNDS.c.number)
    joined = (
        CLIENTS.join(RUNS, RUNS.c.run == CLIENTS.c.run)
        .outerjoin(ROUNDS, (ROUNDS.c.run == RUNS.c.run) & (ROUNDS.c.number == RUNS.c.current_round))
        .outerjoin(PARTICIPANTS, in_round & (PARTICIPANTS.c.client == CLIENTS.c.client))
    )
    found = (
        select(
            CLIENTS.c.state.label("client_state"),
            RUNS.c.state.label("run_state"),
            PARTICIPANTS.c.state.label("part_state"),
            ROUNDS.c.number,
            ROUNDS.c.state,
            ROUNDS.c.attempt,
            ROUNDS.c.base_sha256,
            ROUNDS.c.merged_sha256,
            ROUNDS.c.deadline_s,
        )
        .select_from(joined)
        .where((CLIENTS.c.run == client.run) & (CLIENTS.c.client == client.client))
    )
    row = connection.execute(found).one_or_none()
    if row is None:
        raise ResourceNotFound(f"{client} never joined its run: call JoinRun first", name=str(client))
    newest = None
    if row.number is not None:
        newest = RoundHead(
            name=RoundName(run=client.run, number=row.number),
            state=row.state,
            attempt=row.attempt,
            base_sha256=row.base_sha256,
            merged_sha256=row.merged_sha256,
            deadline_s=row.deadline_s,
        )
    return Situation(
        client=client,
        client_state=row.client_state,
        run_state=row.run_state,
        newest=newest,
        part_state=row.part_state,
    )
