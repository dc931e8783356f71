"""Rounds in the database: open, read, move on. Every change is an event too."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Row, insert, select, update

from fednano.errors import ResourceNotFound
from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.database import timestamp
from services.aggregator.store.events import append_event
from services.aggregator.store.measurements import append_measurements
from services.aggregator.store.participants import (
    Participation,
    find_participation,
    insert_participants,
    participant_count,
    participations,
    replace_unanswered,
    round_metrics,
    set_participation,
    update_count,
)
from services.aggregator.store.runs import set_current_round
from services.aggregator.store.schema import ROUNDS

OVER = (pb.Round.STATE_SUCCEEDED, pb.Round.STATE_FAILED)
# Between changes of state, the events of a larger round carry one participant each: all of them in each event would
# make the events of one round grow with the square of its clients.
SMALL_ROUND = 50
# Beyond this, no event has them all: a message of four megabytes is refused by most gRPC clients.
LARGE_ROUND = 2000
# A page of rounds ends early where it gets larger.
MAX_PAGE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RoundHead:
    """A round without its participants: what is asked for at every poll and heartbeat."""

    name: RoundName
    state: "pb.Round.State.ValueType"
    attempt: int
    base_sha256: str
    merged_sha256: str
    deadline_s: float


def open_round(
    connection: Connection,
    name: RoundName,
    *,
    state: "pb.Round.State.ValueType",
    clients: Sequence[str],
    base_sha256: str,
    merged_sha256: str = "",
    deadline_s: float,
) -> pb.Round:
    """Begins a round with its selected clients and makes it the run's current one."""
    connection.execute(
        insert(ROUNDS).values(
            run=name.run,
            number=name.number,
            state=state,
            base_sha256=base_sha256,
            merged_sha256=merged_sha256,
            create_time_s=time.time(),
            deadline_s=deadline_s,
        )
    )
    insert_participants(connection, name, clients)
    set_current_round(connection, name.run, name.number)
    return announce_round(connection, name)


def retry_round(connection: Connection, name: RoundName, clients: Iterable[str], *, deadline_s: float) -> pb.Round:
    """Takes back who did not answer and asks ``clients`` in their place: the round's second attempt."""
    replace_unanswered(connection, name)
    known = {part.name.client for part in participations(connection, name)}
    asked = list(clients)
    insert_participants(connection, name, [client for client in asked if client not in known], attempt=2)
    again = {"state": pb.Participant.STATE_SELECTED, "attempt": 2}
    for client in known.intersection(asked):
        set_participation(connection, name, ClientName(run=name.run, client=client), again)
    values = {"state": pb.Round.STATE_TRAINING, "attempt": 2, "deadline_s": deadline_s}
    connection.execute(update(ROUNDS).where(_is(name)).values(values))
    return announce_round(connection, name)


def load_round(connection: Connection, name: RoundName) -> pb.Round:
    """Raises ResourceNotFound, naming the round."""
    return _to_message(_load(connection, name), participations(connection, name))


def load_head(connection: Connection, name: RoundName) -> RoundHead:
    """Raises ResourceNotFound, naming the round."""
    return to_head(_load(connection, name))


def newest_round(connection: Connection, run: str) -> RoundHead | None:
    newest = select(ROUNDS).where(ROUNDS.c.run == run).order_by(ROUNDS.c.number.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return None if row is None else to_head(row)


def list_rounds(connection: Connection, run: str, *, after: int = -1, limit: int | None = None) -> list[pb.Round]:
    """The rounds with a number above ``after``, oldest first; fewer where these are large, but at least one."""
    later = (ROUNDS.c.run == run) & (ROUNDS.c.number > after)
    found: list[pb.Round] = []
    size_bytes = 0
    for row in connection.execute(select(ROUNDS).where(later).order_by(ROUNDS.c.number).limit(limit)).all():
        found.append(_to_message(row, participations(connection, RoundName(run=run, number=row.number))))
        size_bytes += found[-1].ByteSize()
        if size_bytes >= MAX_PAGE_BYTES:
            break
    return found


def newest_merged_sha256(connection: Connection, run: str) -> str | None:
    """The run's newest global adapter, if it has one yet."""
    merged = (ROUNDS.c.run == run) & (ROUNDS.c.merged_sha256 != "")
    newest = select(ROUNDS.c.merged_sha256).where(merged).order_by(ROUNDS.c.number.desc()).limit(1)
    sha256: str | None = connection.execute(newest).scalar_one_or_none()
    return sha256


def is_global_adapter(connection: Connection, run: str, sha256: str) -> bool:
    known = (ROUNDS.c.base_sha256 == sha256) | (ROUNDS.c.merged_sha256 == sha256)
    return connection.execute(select(ROUNDS.c.number).where((ROUNDS.c.run == run) & known)).first() is not None


def set_deadline(connection: Connection, name: RoundName, deadline_s: float) -> None:
    """Unix time at which the round's present state stops waiting; clients are told what is left."""
    connection.execute(update(ROUNDS).where(_is(name)).values(deadline_s=deadline_s))


def set_round_state(connection: Connection, name: RoundName, state: "pb.Round.State.ValueType") -> pb.Round:
    """Moves the round on. One that takes no more updates replaces who sent none; its end makes its metrics history."""
    end_time_s = time.time() if state in OVER else None
    connection.execute(update(ROUNDS).where(_is(name)).values(state=state, end_time_s=end_time_s))
    if state == pb.Round.STATE_MERGING:
        replace_unanswered(connection, name)
    if state == pb.Round.STATE_SUCCEEDED:
        append_measurements(connection, name, [(None, round_metrics(participations(connection, name)))])
    return announce_round(connection, name)


def set_merged(
    connection: Connection, name: RoundName, sha256: str, merge_metrics: Mapping[str, float] | None = None
) -> None:
    """Keeps the digest of the merged adapter and what the merge measured over the whole round."""
    values = {"merged_sha256": sha256, "merge_metrics": dict(merge_metrics or {})}
    connection.execute(update(ROUNDS).where(_is(name)).values(values))
    append_measurements(connection, name, [(None, merge_metrics or {})])


def announce_round(connection: Connection, name: RoundName, client: ClientName | None = None) -> pb.Round:
    """Adds the round as it is now to the run's events.

    Where only ``client`` has changed and the round is not small, the event has just that participant and no metrics.
    No event of a very large round has them all.
    """
    participant_total = participant_count(connection, name)
    if client is None or participant_total <= SMALL_ROUND:
        message = load_round(connection, name)
        if participant_total > LARGE_ROUND:
            message.ClearField("participants")
    else:
        part = find_participation(connection, name, client)
        message = _to_message(_load(connection, name), [part] if part else [])
        message.metrics.clear()
        message.update_count = update_count(connection, name)
    append_event(connection, name.run, message)
    return message


def to_head(row: "Row[tuple[object, ...]]") -> RoundHead:
    """From all columns of a row of rounds."""
    return RoundHead(
        name=RoundName(run=row.run, number=row.number),
        state=row.state,
        attempt=row.attempt,
        base_sha256=row.base_sha256,
        merged_sha256=row.merged_sha256,
        deadline_s=row.deadline_s,
    )


def _is(name: RoundName) -> ColumnElement[bool]:
    return (ROUNDS.c.run == name.run) & (ROUNDS.c.number == name.number)


def _load(connection: Connection, name: RoundName) -> "Row[tuple[object, ...]]":
    row = connection.execute(select(ROUNDS).where(_is(name))).one_or_none()
    if row is None:
        raise ResourceNotFound(f"there is no round {name}: list the run's rounds", name=str(name))
    return row


def _to_message(row: "Row[tuple[object, ...]]", parts: Sequence[Participation]) -> pb.Round:
    return pb.Round(
        name=str(RoundName(run=row.run, number=row.number)),
        number=row.number,
        state=row.state,
        participants=[part.to_message() for part in parts],
        base_adapter_sha256=row.base_sha256,
        merged_adapter_sha256=row.merged_sha256,
        metrics={**round_metrics(parts), **row.merge_metrics},
        create_time=timestamp(row.create_time_s),
        end_time=timestamp(row.end_time_s),
        update_count=sum(part.is_updated for part in parts),
        attempt=row.attempt,
    )
