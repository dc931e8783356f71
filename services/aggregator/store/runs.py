"""Runs in the database: create, read, change state. Every change is an event too."""

import time
from collections.abc import Mapping

from sqlalchemy import Connection, Row, insert, select, update

from fednano.errors import ResourceNotFound, RunEnded, WireError
from fednano.names import RoundName, RunName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.clients import active_client_count
from services.aggregator.store.database import timestamp
from services.aggregator.store.events import append_event
from services.aggregator.store.schema import RUNS

ENDED = frozenset({pb.Run.STATE_SUCCEEDED, pb.Run.STATE_FAILED, pb.Run.STATE_CANCELLED})
UNENDED = (pb.Run.STATE_PENDING, pb.Run.STATE_RUNNING, pb.Run.STATE_PAUSED)


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
    found = find_run(connection, run)
    if found is None:
        raise _unknown(run)
    return found


def find_run(connection: Connection, run: str) -> pb.Run | None:
    row = connection.execute(select(RUNS).where(RUNS.c.run == run)).one_or_none()
    return None if row is None else _to_message(connection, row)


def run_state(connection: Connection, run: str) -> "pb.Run.State.ValueType":
    """Raises ResourceNotFound, naming the run."""
    state: pb.Run.State.ValueType | None = connection.execute(
        select(RUNS.c.state).where(RUNS.c.run == run)
    ).scalar_one_or_none()
    if state is None:
        raise _unknown(run)
    return state


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


def list_runs(connection: Connection, *, before: str = "", limit: int) -> list[pb.Run]:
    """Newest first: those older than the run ``before``, or all. Raises ResourceNotFound where that is unknown."""
    older = select(RUNS).order_by(RUNS.c.position.desc()).limit(limit)
    if before:
        position = connection.execute(select(RUNS.c.position).where(RUNS.c.run == before)).scalar_one_or_none()
        if position is None:
            raise _unknown(before)
        older = older.where(RUNS.c.position < position)
    return [_to_message(connection, row) for row in connection.execute(older).all()]


def start_run(connection: Connection, run: str) -> pb.Run:
    """A pending run begins its rounds."""
    return _change(connection, run, {"state": pb.Run.STATE_RUNNING, "start_time_s": time.time(), "waiting_for": ""})


def pause_run(connection: Connection, run: str) -> pb.Run:
    """Holds the run. Nothing changes for one that is held; raises RunEnded for one that has ended."""
    before = load_run(connection, run)
    _check_unended(before)
    if before.state == pb.Run.STATE_PAUSED:
        return before
    return _change(connection, run, {"state": pb.Run.STATE_PAUSED, "resume_state": before.state})


def resume_run(connection: Connection, run: str) -> pb.Run:
    """Lets a held run go on from the state that it was in. Nothing changes for another; raises RunEnded."""
    before = load_run(connection, run)
    _check_unended(before)
    if before.state != pb.Run.STATE_PAUSED:
        return before
    state = connection.execute(select(RUNS.c.resume_state).where(RUNS.c.run == run)).scalar_one()
    return _change(connection, run, {"state": state, "resume_state": None, "waiting_for": ""})


def set_waiting_for(connection: Connection, run: str, words: str) -> bool:
    """Keeps what the run waits for; True where these are other words than before, which is an event."""
    if connection.execute(select(RUNS.c.waiting_for).where(RUNS.c.run == run)).scalar_one() == words:
        return False
    _change(connection, run, {"waiting_for": words})
    return True


def end_run(
    connection: Connection, run: str, state: "pb.Run.State.ValueType", failure: WireError | None = None
) -> pb.Run:
    """Ends a run, with its failure where it failed. A run that has ended stays as it is."""
    before = load_run(connection, run)
    if before.state in ENDED:
        return before
    ended = {
        "state": state,
        "end_time_s": time.time(),
        "waiting_for": "",
        "resume_state": None,
        "failure_reason": None if failure is None else failure.reason,
        "failure_message": None if failure is None else failure.message,
    }
    return _change(connection, run, ended)


def set_current_round(connection: Connection, run: str, number: int) -> None:
    connection.execute(update(RUNS).where(RUNS.c.run == run).values(current_round=number))


def _change(connection: Connection, run: str, values: Mapping[str, object]) -> pb.Run:
    connection.execute(update(RUNS).where(RUNS.c.run == run).values(dict(values)))
    return _announce(connection, run)


def _check_unended(run: pb.Run) -> None:
    if run.state in ENDED:
        state = pb.Run.State.Name(run.state)
        raise RunEnded(f"{run.name} has ended: it is {state}", name=run.name, state=state)


def _unknown(run: str) -> ResourceNotFound:
    name = str(RunName(run=run))
    return ResourceNotFound(f"there is no run {name}: list the runs to see their names", name=name)


def _announce(connection: Connection, run: str) -> pb.Run:
    append_event(connection, run, load_run(connection, run))
    return load_run(connection, run)


def _to_message(connection: Connection, row: "Row[tuple[object, ...]]") -> pb.Run:
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
        active_client_count=active_client_count(connection, row.run),
        waiting_for=row.waiting_for,
        event_sequence=row.event_count,
    )
