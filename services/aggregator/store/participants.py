"""Clients' parts in a round: what each sent, what it measured, and why its last update was refused."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, ColumnElement, Connection, Row, bindparam, func, insert, select, update

from fednano.errors import ClientNotSelected
from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.clients import check_not_evicted, set_refusal
from services.aggregator.store.measurements import append_measurements, kept_metrics
from services.aggregator.store.schema import PARTICIPANTS

# Sums over clients; every other metric is a mean weighted by examples.
SUMMED = "bytes/"
# Takes part in the round no more.
OUT = (pb.Participant.STATE_REPLACED, pb.Participant.STATE_EVICTED)


@dataclass(frozen=True, kw_only=True)
class Participation:
    """One row: a client's part in a round. Digests are empty until its update was accepted."""

    name: ClientName
    state: "pb.Participant.State.ValueType"
    example_count: int
    metrics: Mapping[str, float]
    test_example_count: int
    test_metrics: Mapping[str, float]
    merge_metrics: Mapping[str, float]
    refusal: str
    adapter_sha256: str
    fisher_sha256: str
    gram_sha256: str
    # What it starts from where that is not the round's adapter but its own.
    base_sha256: str

    @property
    def artifact_sha256s(self) -> list[str]:
        """Of all that its accepted update holds, in the order of the header."""
        return [sha256 for sha256 in (self.adapter_sha256, self.fisher_sha256, self.gram_sha256) if sha256]

    @property
    def is_updated(self) -> bool:
        """Whether it has an update that counts: one of an evicted client does not."""
        return bool(self.adapter_sha256) and self.state not in OUT

    @property
    def is_evaluated(self) -> bool:
        return self.state == pb.Participant.STATE_EVALUATED

    def to_message(self) -> pb.Participant:
        merged = {**self.metrics, **self.merge_metrics}
        for key, number in self.test_metrics.items():
            merged[key] = merged.get(key, 0.0) + number if key.startswith(SUMMED) else number
        return pb.Participant(
            client=str(self.name),
            state=self.state,
            example_count=self.example_count,
            metrics=merged,
            refusal=self.refusal,
        )


def insert_participants(connection: Connection, name: RoundName, clients: Iterable[str], attempt: int = 1) -> None:
    """Selects clients that have no part in the round yet."""
    given = {"run": name.run, "number": name.number, "state": pb.Participant.STATE_SELECTED, "attempt": attempt}
    rows = [{**given, "client": client} for client in clients]
    if rows:
        connection.execute(insert(PARTICIPANTS), rows)


def participations(connection: Connection, name: RoundName) -> list[Participation]:
    """Sorted by the clients' names."""
    rows = connection.execute(select(PARTICIPANTS).where(_in_round(name)))
    return sorted((_from_row(row) for row in rows), key=lambda part: part.name)


def find_participation(connection: Connection, name: RoundName, client: ClientName) -> Participation | None:
    row = connection.execute(select(PARTICIPANTS).where(_is(name, client))).one_or_none()
    return None if row is None else _from_row(row)


def load_participation(connection: Connection, name: RoundName, client: ClientName) -> Participation:
    """The part of a client from which the round takes answers; raises ClientEvicted and ClientNotSelected."""
    check_not_evicted(connection, client)
    part = find_participation(connection, name, client)
    if part is None or part.state in OUT:
        words = "was not selected for" if part is None else "did not answer in time and was replaced in"
        raise ClientNotSelected(f"{client} {words} {name}: poll for a task", name=str(client), round=str(name))
    return part


def record_update(
    connection: Connection,
    name: RoundName,
    client: ClientName,
    *,
    example_count: int,
    metrics: Mapping[str, float],
    adapter_sha256: str,
    fisher_sha256: str = "",
    gram_sha256: str = "",
) -> None:
    """Accepts an update that is whole, checked and on disk; its metrics become history."""
    said = {
        "state": pb.Participant.STATE_UPDATED,
        "example_count": example_count,
        "metrics": kept_metrics(metrics),
        "adapter_sha256": adapter_sha256,
        "fisher_sha256": fisher_sha256,
        "gram_sha256": gram_sha256,
        "refusal": "",
    }
    set_participation(connection, name, client, said)
    append_measurements(connection, name, [(client, metrics)])
    set_refusal(connection, client, "")


def record_refusal(connection: Connection, name: RoundName, client: ClientName, words: str) -> bool:
    """Keeps why an update was refused, for the round and for the client; True where the round's participant changed."""
    set_refusal(connection, client, words)
    part = find_participation(connection, name, client)
    if part is None or part.refusal == words:
        return False
    set_participation(connection, name, client, {"refusal": words})
    return True


def record_training(connection: Connection, name: RoundName, client: ClientName, metrics: Mapping[str, float]) -> None:
    """Keeps what a client measured while it trains; its update's own metrics replace them."""
    if load_participation(connection, name, client).state == pb.Participant.STATE_SELECTED:
        set_participation(connection, name, client, {"metrics": kept_metrics(metrics)})


def record_evaluation(
    connection: Connection, name: RoundName, client: ClientName, example_count: int, metrics: Mapping[str, float]
) -> bool:
    """Keeps a client's evaluation; False where it had given this very one before, and nothing changes."""
    kept = kept_metrics(metrics)
    part = load_participation(connection, name, client)
    if part.is_evaluated and (part.test_example_count, part.test_metrics) == (example_count, kept):
        return False
    said = {"state": pb.Participant.STATE_EVALUATED, "test_example_count": example_count, "test_metrics": kept}
    set_participation(connection, name, client, said)
    append_measurements(connection, name, [(client, kept)])
    return True


def record_merge_metrics(
    connection: Connection, name: RoundName, measured: Mapping[ClientName, Mapping[str, float]]
) -> None:
    """Keeps what the merge measured of each client's update, such as its share."""
    rows = [{"the_client": client.client, "measured": kept_metrics(metrics)} for client, metrics in measured.items()]
    if rows:
        chosen = _in_round(name) & (PARTICIPANTS.c.client == bindparam("the_client"))
        values = {"merge_metrics": bindparam("measured", type_=JSON)}
        connection.execute(update(PARTICIPANTS).where(chosen).values(values), rows)
    append_measurements(connection, name, measured.items())


def set_participation(
    connection: Connection, name: RoundName, client: ClientName, values: Mapping[str, object]
) -> None:
    connection.execute(update(PARTICIPANTS).where(_is(name, client)).values(dict(values)))


def replace_unanswered(connection: Connection, name: RoundName) -> int:
    """Marks those who sent no update as replaced; returns how many."""
    unanswered = _in_round(name) & (PARTICIPANTS.c.state == pb.Participant.STATE_SELECTED)
    return connection.execute(
        update(PARTICIPANTS).where(unanswered).values(state=pb.Participant.STATE_REPLACED)
    ).rowcount


def update_count(connection: Connection, name: RoundName) -> int:
    """Accepted updates that count."""
    counted = _in_round(name) & (PARTICIPANTS.c.adapter_sha256 != "") & PARTICIPANTS.c.state.not_in(OUT)
    return int(connection.execute(select(func.count()).where(counted)).scalar_one())


def participant_count(connection: Connection, name: RoundName) -> int:
    return int(connection.execute(select(func.count()).where(_in_round(name))).scalar_one())


def round_metrics(parts: Sequence[Participation]) -> dict[str, float]:
    """Sums of "bytes/*" and example-weighted means of all else, over the clients that reported it."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    counted = [part for part in parts if part.state != pb.Participant.STATE_EVICTED]
    reports = [(part.metrics, part.example_count) for part in counted]
    reports += [(part.test_metrics, part.test_example_count) for part in counted]
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


def _in_round(name: RoundName) -> ColumnElement[bool]:
    return (PARTICIPANTS.c.run == name.run) & (PARTICIPANTS.c.number == name.number)


def _is(name: RoundName, client: ClientName) -> ColumnElement[bool]:
    return _in_round(name) & (PARTICIPANTS.c.client == client.client)


def _from_row(row: "Row[tuple[object, ...]]") -> Participation:
    return Participation(
        name=ClientName(run=row.run, client=row.client),
        state=row.state,
        example_count=row.example_count,
        metrics=row.metrics,
        test_example_count=row.test_example_count,
        test_metrics=row.test_metrics,
        merge_metrics=row.merge_metrics,
        refusal=row.refusal,
        adapter_sha256=row.adapter_sha256,
        fisher_sha256=row.fisher_sha256,
        gram_sha256=row.gram_sha256,
        base_sha256=row.base_sha256,
    )
