"""Clients' parts in a round: what each sent, what it measured, and why its last update was refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, select, update

from fednano.errors import ClientNotSelected
from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.schema import PARTICIPANTS

# Sums over clients; every other metric is a mean weighted by examples.
SUMMED = "bytes/"


@dataclass(frozen=True, kw_only=True)
class Participation:
    """One row: a client's part in a round. Digests are empty until its update was accepted."""

    name: ClientName
    state: "pb.Participant.State.ValueType"
    example_count: int
    metrics: Mapping[str, float]
    test_example_count: int
    test_metrics: Mapping[str, float]
    refusal: str
    adapter_sha256: str
    fisher_sha256: str

    @property
    def is_updated(self) -> bool:
        return bool(self.adapter_sha256)

    @property
    def is_evaluated(self) -> bool:
        return self.state == pb.Participant.STATE_EVALUATED

    def to_message(self) -> pb.Participant:
        merged = dict(self.metrics)
        for key, number in self.test_metrics.items():
            merged[key] = merged.get(key, 0.0) + number if key.startswith(SUMMED) else number
        return pb.Participant(
            client=str(self.name),
            state=self.state,
            example_count=self.example_count,
            metrics=merged,
            refusal=self.refusal,
        )


def participations(connection: Connection, name: RoundName) -> list[Participation]:
    """Sorted by the clients' names."""
    chosen = (PARTICIPANTS.c.run == name.run) & (PARTICIPANTS.c.number == name.number)
    rows = connection.execute(select(PARTICIPANTS).where(chosen).order_by(PARTICIPANTS.c.client))
    return [
        Participation(
            name=ClientName(run=row.run, client=row.client),
            state=row.state,
            example_count=row.example_count,
            metrics=row.metrics,
            test_example_count=row.test_example_count,
            test_metrics=row.test_metrics,
            refusal=row.refusal,
            adapter_sha256=row.adapter_sha256,
            fisher_sha256=row.fisher_sha256,
        )
        for row in rows
    ]


def find_participation(connection: Connection, name: RoundName, client: ClientName) -> Participation | None:
    parts = participations(connection, name)
    return next((part for part in parts if part.name == client), None)


def load_participation(connection: Connection, name: RoundName, client: ClientName) -> Participation:
    """Raises ClientNotSelected."""
    part = find_participation(connection, name, client)
    if part is None:
        raise ClientNotSelected(
            f"{client} was not selected for {name}: poll for a task", client=str(client), round=str(name)
        )
    return part


def record_update(
    connection: Connection,
    name: RoundName,
    client: ClientName,
    *,
    example_count: int,
    metrics: Mapping[str, float],
    adapter_sha256: str,
    fisher_sha256: str,
) -> None:
    connection.execute(
        update(PARTICIPANTS)
        .where(_is(name, client))
        .values(
            state=pb.Participant.STATE_UPDATED,
            example_count=example_count,
            metrics=dict(metrics),
            adapter_sha256=adapter_sha256,
            fisher_sha256=fisher_sha256,
            refusal="",
        )
    )


def record_refusal(connection: Connection, name: RoundName, client: ClientName, words: str) -> None:
    connection.execute(update(PARTICIPANTS).where(_is(name, client)).values(refusal=words))


def record_training(connection: Connection, name: RoundName, client: ClientName, metrics: Mapping[str, float]) -> None:
    connection.execute(update(PARTICIPANTS).where(_is(name, client)).values(metrics=dict(metrics)))


def record_evaluation(
    connection: Connection, name: RoundName, client: ClientName, example_count: int, metrics: Mapping[str, float]
) -> None:
    connection.execute(
        update(PARTICIPANTS)
        .where(_is(name, client))
        .values(state=pb.Participant.STATE_EVALUATED, test_example_count=example_count, test_metrics=dict(metrics))
    )


def round_metrics(parts: Sequence[Participation]) -> dict[str, float]:
    """Sums of "bytes/*" and example-weighted means of all else, over the clients that reported it."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    reports = [(part.metrics, part.example_count) for part in parts]
    reports += [(part.test_metrics, part.test_example_count) for part in parts]
    for metrics, example_count in reports:
        for key, number in metrics.items():
            weight = 1 if key.startswith(SUMMED) else example_count
            sums[key] = sums.get(key, 0.0) + weight * number
            weights[key] = weights.get(key, 0.0) + weight
    return {
        key: total if key.startswith(SUMMED) else total / weights[key]
        for key, total in sorted(sums.items())
        if weights[key] > 0
    }


def _is(name: RoundName, client: ClientName) -> ColumnElement[bool]:
    in_round = (PARTICIPANTS.c.run == name.run) & (PARTICIPANTS.c.number == name.number)
    return in_round & (PARTICIPANTS.c.client == client.client)
