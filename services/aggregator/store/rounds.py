"""Rounds in the database: open, read, move on. Every change is an event too."""

import time
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Row, insert, select, update

from fednano.errors import ResourceNotFound
from fednano.names import RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.database import timestamp
from services.aggregator.store.events import append_event
from services.aggregator.store.participants import Participation, participations, round_metrics
from services.aggregator.store.runs import set_current_round
from services.aggregator.store.schema import PARTICIPANTS, ROUNDS


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
    selected = pb.Participant.STATE_SELECTED
    rows = [{"run": name.run, "number": name.number, "client": client, "state": selected} for client in clients]
    connection.execute(insert(PARTICIPANTS), rows)
    set_current_round(connection, name.run, name.number)
    return announce_round(connection, name)


def load_round(connection: Connection, name: RoundName) -> pb.Round:
    """Raises ResourceNotFound, naming the round."""
    row = connection.execute(select(ROUNDS).where(_is(name))).one_or_none()
    if row is None:
        raise ResourceNotFound(f"there is no round {name}: list the run's rounds", round=str(name))
    return _to_message(connection, row)


def newest_round(connection: Connection, run: str) -> pb.Round | None:
    newest = select(ROUNDS).where(ROUNDS.c.run == run).order_by(ROUNDS.c.number.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return None if row is None else _to_message(connection, row)


def list_rounds(connection: Connection, run: str, offset: int = 0, limit: int | None = None) -> list[pb.Round]:
    """Oldest first."""
    every = select(ROUNDS).where(ROUNDS.c.run == run).order_by(ROUNDS.c.number).offset(offset).limit(limit)
    return [_to_message(connection, row) for row in connection.execute(every).all()]


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
    connection.execute(update(ROUNDS).where(_is(name)).values(deadline_s=deadline_s))


def round_deadline_s(connection: Connection, name: RoundName) -> float:
    """Unix time at which the round's present state stops waiting."""
    return float(connection.execute(select(ROUNDS.c.deadline_s).where(_is(name))).scalar_one())


def set_round_state(connection: Connection, name: RoundName, state: "pb.Round.State.ValueType") -> pb.Round:
    is_over = state in (pb.Round.STATE_SUCCEEDED, pb.Round.STATE_FAILED)
    end_time_s = time.time() if is_over else None
    connection.execute(update(ROUNDS).where(_is(name)).values(state=state, end_time_s=end_time_s))
    return announce_round(connection, name)


def set_merged(connection: Connection, name: RoundName, sha256: str) -> None:
    connection.execute(update(ROUNDS).where(_is(name)).values(merged_sha256=sha256))


def announce_round(connection: Connection, name: RoundName) -> pb.Round:
    """Adds the round as it is now to the run's events."""
    message = load_round(connection, name)
    append_event(connection, name.run, message)
    return message


def _is(name: RoundName) -> ColumnElement[bool]:
    return (ROUNDS.c.run == name.run) & (ROUNDS.c.number == name.number)


def _to_message(connection: Connection, row: "Row[tuple[object, ...]]") -> pb.Round:
    name = RoundName(run=row.run, number=row.number)
    parts: list[Participation] = participations(connection, name)
    return pb.Round(
        name=str(name),
        number=row.number,
        state=row.state,
        participants=[part.to_message() for part in parts],
        base_adapter_sha256=row.base_sha256,
        merged_adapter_sha256=row.merged_sha256,
        metrics=round_metrics(parts),
        create_time=timestamp(row.create_time_s),
        end_time=timestamp(row.end_time_s),
        update_count=sum(bool(part.adapter_sha256) for part in parts),
    )
