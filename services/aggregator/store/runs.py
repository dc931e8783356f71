"""Runs in the database: create, read, change state. Every change is an event too."""

import time

from sqlalchemy import Connection, Row, func, insert, select, update

from fednano.errors import ResourceNotFound, WireError
from fednano.names import RoundName, RunName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.database import timestamp
from services.aggregator.store.events import append_event
from services.aggregator.store.schema import CLIENTS, RUNS

ENDED = frozenset({pb.Run.STATE_SUCCEEDED, pb.Run.STATE_FAILED, pb.Run.STATE_CANCELLED})
UNENDED = (pb.Run.STATE_PENDING, pb.Run.STATE_RUNNING)


def insert_run(connection: Connection, run: str, display_name: str, config: pb.RunConfig, request_id: str) -> pb.Run:
    connection.execute(
        insert(RUNS).values(
            run=run,
            request_id=request_id or None,
            display_name=display_name,
            config=config.SerializeToString(deterministic=True),
            state=pb.Run.STATE_PENDING,
            create_time_s=time.time(),
        )
    )
    return _announce(connection, run)


def load_run(connection: Connection, run: str) -> pb.Run:
    """Raises ResourceNotFound, naming the run."""
    row = connection.execute(select(RUNS).where(RUNS.c.run == run)).one_or_none()
    if row is None:
        raise ResourceNotFound(f"there is no run {RunName(run=run)}: list the runs to see their names", run=run)
    return _to_message(connection, row)


def find_run(connection: Connection, run: str) -> pb.Run | None:
    row = connection.execute(select(RUNS).where(RUNS.c.run == run)).one_or_none()
    return None if row is None else _to_message(connection, row)


def find_run_by_request(connection: Connection, request_id: str) -> pb.Run | None:
    row = connection.execute(select(RUNS).where(RUNS.c.request_id == request_id)).one_or_none()
    return None if row is None else _to_message(connection, row)


def newest_unended_run(connection: Connection) -> str:
    """Raises ResourceNotFound where every run has ended."""
    newest = select(RUNS.c.run).where(RUNS.c.state.in_(UNENDED)).order_by(RUNS.c.position.desc()).limit(1)
    run: str | None = connection.execute(newest).scalar_one_or_none()
    if run is None:
        raise ResourceNotFound("there is no run that has not ended: create one, then join it")
    return run


def unended_runs(connection: Connection) -> list[str]:
    """The ids of runs that still need a driver, oldest first."""
    rows = connection.execute(select(RUNS.c.run).where(RUNS.c.state.in_(UNENDED)).order_by(RUNS.c.position))
    return list(rows.scalars())


def list_runs(connection: Connection, offset: int, limit: int) -> list[pb.Run]:
    """Newest first."""
    rows = connection.execute(select(RUNS).order_by(RUNS.c.position.desc()).offset(offset).limit(limit))
    return [_to_message(connection, row) for row in rows.all()]


def start_run(connection: Connection, run: str) -> pb.Run:
    started = update(RUNS).where(RUNS.c.run == run)
    connection.execute(started.values(state=pb.Run.STATE_RUNNING, start_time_s=time.time()))
    return _announce(connection, run)


def end_run(
    connection: Connection, run: str, state: "pb.Run.State.ValueType", failure: WireError | None = None
) -> pb.Run:
    """Ends a run, with its failure where it failed. A run that has ended stays as it is."""
    before = load_run(connection, run)
    if before.state in ENDED:
        return before
    connection.execute(
        update(RUNS)
        .where(RUNS.c.run == run)
        .values(
            state=state,
            end_time_s=time.time(),
            failure_reason=None if failure is None else failure.reason,
            failure_message=None if failure is None else failure.message,
        )
    )
    return _announce(connection, run)


def set_current_round(connection: Connection, run: str, number: int) -> None:
    connection.execute(update(RUNS).where(RUNS.c.run == run).values(current_round=number))


def _announce(connection: Connection, run: str) -> pb.Run:
    message = load_run(connection, run)
    append_event(connection, run, message)
    return message


def _to_message(connection: Connection, row: "Row[tuple[object, ...]]") -> pb.Run:
    active = (CLIENTS.c.run == row.run) & (CLIENTS.c.state == pb.Client.STATE_ACTIVE)
    current = "" if row.current_round is None else str(RoundName(run=row.run, number=row.current_round))
    failed = row.failure_reason is not None
    return pb.Run(
        name=str(RunName(run=row.run)),
        display_name=row.display_name,
        config=pb.RunConfig.FromString(row.config),
        state=row.state,
        current_round=current,
        failure=pb.Failure(reason=row.failure_reason, message=row.failure_message) if failed else None,
        create_time=timestamp(row.create_time_s),
        start_time=timestamp(row.start_time_s),
        end_time=timestamp(row.end_time_s),
        active_client_count=connection.execute(select(func.count()).where(active)).scalar_one(),
    )
