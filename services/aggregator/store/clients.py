"""Clients in the database: join, leave, being lost when the lease ran out, being put out by an operator."""

import time
from collections.abc import Iterable, Mapping

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, select, update

from fednano.errors import ClientEvicted, ResourceNotFound
from fednano.names import ClientName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.database import timestamp, upsert
from services.aggregator.store.events import append_event
from services.aggregator.store.schema import CLIENTS


def put_client(
    connection: Connection,
    name: ClientName,
    *,
    display_name: str,
    example_count: int,
    parameter_counts: Mapping[str, int],
) -> pb.Client:
    """Enrols a client, or brings back the one of that name with what it now says of itself. Raises ClientEvicted."""
    check_not_evicted(connection, name)
    now_s = time.time()
    said = {
        "display_name": display_name,
        "state": pb.Client.STATE_ACTIVE,
        "example_count": example_count,
        "heartbeat_time_s": now_s,
        "parameter_counts": dict(parameter_counts),
        "step": 0,
    }
    upsert(connection, CLIENTS, {"run": name.run, "client": name.client}, said, initial={"join_time_s": now_s})
    return _announce(connection, name)


def load_client(connection: Connection, name: ClientName) -> pb.Client:
    """Raises ResourceNotFound, naming the client."""
    row = connection.execute(select(CLIENTS).where(_is(name))).one_or_none()
    if row is None:
        raise _unknown(name)
    return _to_message(row)


def client_state(connection: Connection, name: ClientName) -> "pb.Client.State.ValueType":
    """Raises ResourceNotFound, naming the client."""
    state: pb.Client.State.ValueType | None = connection.execute(
        select(CLIENTS.c.state).where(_is(name))
    ).scalar_one_or_none()
    if state is None:
        raise _unknown(name)
    return state


def check_not_evicted(connection: Connection, name: ClientName) -> None:
    """Raises ClientEvicted. A client that nobody knows yet passes."""
    state = connection.execute(select(CLIENTS.c.state).where(_is(name))).scalar_one_or_none()
    if state == pb.Client.STATE_EVICTED:
        raise evicted(name)


def evicted(name: ClientName) -> ClientEvicted:
    """What a client is told that was put out."""
    return ClientEvicted(f"{name} was put out of its run by an operator: it may not return", client=str(name))


def list_clients(connection: Connection, run: str, *, after: str = "", limit: int | None = None) -> list[pb.Client]:
    """Clients that ever joined, sorted by name: those whose id comes after ``after``."""
    later = (CLIENTS.c.run == run) & (CLIENTS.c.client > after)
    rows = connection.execute(select(CLIENTS).where(later).order_by(CLIENTS.c.client).limit(limit))
    return [_to_message(row) for row in rows]


def active_client_ids(connection: Connection, run: str) -> list[str]:
    """Sorted by name."""
    return list(connection.execute(select(CLIENTS.c.client).where(_active(run)).order_by(CLIENTS.c.client)).scalars())


def active_client_count(connection: Connection, run: str) -> int:
    return int(connection.execute(select(func.count()).where(_active(run))).scalar_one())


def renew_lease(connection: Connection, name: ClientName, state: "pb.Client.State.ValueType") -> bool:
    """Takes a sign of life of a client in ``state``: True where it was lost, and now is active again."""
    if state != pb.Client.STATE_LOST:
        return False
    set_client_state(connection, name, pb.Client.STATE_ACTIVE)
    return True


def set_client_state(connection: Connection, name: ClientName, state: "pb.Client.State.ValueType") -> pb.Client:
    """Nothing changes for a client that is in that state already."""
    before = load_client(connection, name)
    if before.state == state:
        return before
    connection.execute(update(CLIENTS).where(_is(name)).values(state=state))
    return _announce(connection, name)


def leave_run(connection: Connection, name: ClientName) -> None:
    """An evicted client stays evicted."""
    if client_state(connection, name) != pb.Client.STATE_EVICTED:
        set_client_state(connection, name, pb.Client.STATE_LEFT)


def lose_clients(connection: Connection, run: str, lost: Iterable[str]) -> None:
    for client in lost:
        set_client_state(connection, ClientName(run=run, client=client), pb.Client.STATE_LOST)


def set_heard(connection: Connection, run: str, heard: Mapping[str, tuple[float, int]]) -> None:
    """Writes when each client was last heard, in Unix seconds, and the step it was at."""
    rows = [{"the_client": client, "time_s": time_s, "step": step} for client, (time_s, step) in sorted(heard.items())]
    if rows:
        chosen = (CLIENTS.c.run == run) & (CLIENTS.c.client == bindparam("the_client"))
        values: dict[str, ColumnElement[object]] = {"heartbeat_time_s": bindparam("time_s"), "step": bindparam("step")}
        connection.execute(update(CLIENTS).where(chosen).values(values), rows)


def set_refusal(connection: Connection, name: ClientName, words: str) -> None:
    """Why the client's last update was refused; empty once one was accepted."""
    if load_client(connection, name).refusal != words:
        connection.execute(update(CLIENTS).where(_is(name)).values(refusal=words))
        _announce(connection, name)


def _is(name: ClientName) -> ColumnElement[bool]:
    return (CLIENTS.c.run == name.run) & (CLIENTS.c.client == name.client)


def _active(run: str) -> ColumnElement[bool]:
    return (CLIENTS.c.run == run) & (CLIENTS.c.state == pb.Client.STATE_ACTIVE)


def _unknown(name: ClientName) -> ResourceNotFound:
    return ResourceNotFound(f"{name} never joined its run, or there is no such run", name=str(name))


def _announce(connection: Connection, name: ClientName) -> pb.Client:
    client = load_client(connection, name)
    append_event(connection, name.run, client)
    return client


def _to_message(row: "Row[tuple[object, ...]]") -> pb.Client:
    return pb.Client(
        name=str(ClientName(run=row.run, client=row.client)),
        display_name=row.display_name,
        state=row.state,
        example_count=row.example_count,
        join_time=timestamp(row.join_time_s),
        last_heartbeat_time=timestamp(row.heartbeat_time_s),
        parameter_counts=row.parameter_counts,
        step=row.step,
        refusal=row.refusal,
    )
