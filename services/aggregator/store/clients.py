"""Clients in the database: join, leave, heartbeat, and being lost when the lease ran out."""

import time
from collections.abc import Mapping

from sqlalchemy import ColumnElement, Connection, Row, select, update

from fednano.errors import ResourceNotFound
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
    """Enrols a client, or brings back the one of that name with what it now says of itself."""
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
        raise ResourceNotFound(f"{name} never joined its run: call JoinRun first", client=str(name))
    return _to_message(row)


def list_clients(connection: Connection, run: str, offset: int = 0, limit: int | None = None) -> list[pb.Client]:
    """All clients that ever joined, sorted by name."""
    every = select(CLIENTS).where(CLIENTS.c.run == run).order_by(CLIENTS.c.client)
    return [_to_message(row) for row in connection.execute(every.offset(offset).limit(limit))]


def active_client_ids(connection: Connection, run: str) -> list[str]:
    """Sorted by name."""
    active = (CLIENTS.c.run == run) & (CLIENTS.c.state == pb.Client.STATE_ACTIVE)
    return list(connection.execute(select(CLIENTS.c.client).where(active).order_by(CLIENTS.c.client)).scalars())


def renew_lease(connection: Connection, name: ClientName, step: int | None = None) -> pb.Client:
    """Notes a sign of life. One that was lost is active again; one that left stays so."""
    before = load_client(connection, name)
    said: dict[str, float | int] = {"heartbeat_time_s": time.time()}
    if step is not None:
        said["step"] = step
    if before.state == pb.Client.STATE_LOST:
        said["state"] = pb.Client.STATE_ACTIVE
    connection.execute(update(CLIENTS).where(_is(name)).values(said))
    return _announce(connection, name) if "state" in said else before


def leave_run(connection: Connection, name: ClientName) -> None:
    if load_client(connection, name).state != pb.Client.STATE_LEFT:
        connection.execute(update(CLIENTS).where(_is(name)).values(state=pb.Client.STATE_LEFT))
        _announce(connection, name)


def lose_silent_clients(connection: Connection, run: str, silent_since_s: float) -> int:
    """Marks active clients as lost that were last heard before ``silent_since_s``; returns how many."""
    silent = (
        (CLIENTS.c.run == run)
        & (CLIENTS.c.state == pb.Client.STATE_ACTIVE)
        & (CLIENTS.c.heartbeat_time_s < silent_since_s)
    )
    lost = list(connection.execute(select(CLIENTS.c.client).where(silent).order_by(CLIENTS.c.client)).scalars())
    for client in lost:
        name = ClientName(run=run, client=client)
        connection.execute(update(CLIENTS).where(_is(name)).values(state=pb.Client.STATE_LOST))
        _announce(connection, name)
    return len(lost)


def _is(name: ClientName) -> ColumnElement[bool]:
    return (CLIENTS.c.run == name.run) & (CLIENTS.c.client == name.client)


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
    )
