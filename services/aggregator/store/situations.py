"""All that decides what one client should do, read at once: each poll and each heartbeat of each client asks for it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from fednano.errors import ResourceNotFound
from fednano.methods import artifact_kinds
from fednano.names import ClientName
from fednano.v1 import run_pb2 as pb
from fednano.v1.artifact_pb2 import ArtifactKind
from services.aggregator.store.lineages import has_gram
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
    # The adapters of a client that starts from its own, and the one it made of it; empty where there are none.
    own_base_sha256: str = ""
    own_adapter_sha256: str = ""
    # What an update of its is to hold now.
    artifact_kinds: "tuple[ArtifactKind.ValueType, ...]" = ()


def load_situation(connection: Connection, client: ClientName) -> Situation:
    """Raises ResourceNotFound, naming the client."""
    mine = (CLIENTS.c.run == client.run) & (CLIENTS.c.client == client.client)
    row = connection.execute(_situations().where(mine)).one_or_none()
    if row is None:
        raise ResourceNotFound(f"{client} never joined its run, or there is no such run", name=str(client))
    is_to_train = row.part_state == pb.Participant.STATE_SELECTED and row.state == pb.Round.STATE_TRAINING
    return Situation(
        client=client,
        client_state=row.client_state,
        run_state=row.run_state,
        newest=None if row.number is None else to_head(row),
        part_state=row.part_state,
        own_base_sha256=row.own_base_sha256 or "",
        own_adapter_sha256=row.own_adapter_sha256 or "",
        artifact_kinds=(
            wanted_artifacts(connection, client, pb.RunConfig.FromString(row.config)) if is_to_train else ()
        ),
    )


def wanted_artifacts(
    connection: Connection, client: ClientName, config: pb.RunConfig
) -> "tuple[ArtifactKind.ValueType, ...]":
    """What an update of the client is to hold, by its run's method and what it has given before."""
    needs_gram = config.method == pb.METHOD_FEDNANO_GRAM
    return artifact_kinds(config, has_gram=needs_gram and has_gram(connection, client))


def _situations() -> Select[Any]:
    """Every client beside its run, the run's newest round and its part in that."""
    in_round = (PARTICIPANTS.c.run == ROUNDS.c.run) & (PARTICIPANTS.c.number == ROUNDS.c.number)
    return select(
        CLIENTS.c.state.label("client_state"),
        RUNS.c.state.label("run_state"),
        RUNS.c.config,
        PARTICIPANTS.c.state.label("part_state"),
        PARTICIPANTS.c.base_sha256.label("own_base_sha256"),
        PARTICIPANTS.c.adapter_sha256.label("own_adapter_sha256"),
        ROUNDS,
    ).select_from(
        CLIENTS.join(RUNS, RUNS.c.run == CLIENTS.c.run)
        .outerjoin(ROUNDS, (ROUNDS.c.run == RUNS.c.run) & (ROUNDS.c.number == RUNS.c.current_round))
        .outerjoin(PARTICIPANTS, in_round & (PARTICIPANTS.c.client == CLIENTS.c.client))
    )
