"""The events of a run: written in the transaction that makes the change, numbered without gaps."""

import time

from sqlalchemy import Connection, insert, select, update

from fednano.v1 import run_pb2 as pb
from services.aggregator.store.database import timestamp
from services.aggregator.store.schema import EVENTS, RUNS

MAX_EVENTS = 100
# An event of a large round has hundreds of kilobytes.
MAX_BYTES = 1 << 20


def append_event(connection: Connection, run: str, subject: pb.Run | pb.Round | pb.Client) -> None:
    """Adds the resource, as it is now, to the run's events."""
    counted = update(RUNS).where(RUNS.c.run == run).values(event_count=RUNS.c.event_count + 1)
    sequence = connection.execute(counted.returning(RUNS.c.event_count)).scalar_one()
    event = pb.Event(sequence=sequence, create_time=timestamp(time.time()))
    match subject:
        case pb.Run():
            event.run.CopyFrom(subject)
            event.run.event_sequence = sequence
        case pb.Round():
            event.round.CopyFrom(subject)
        case pb.Client():
            event.client.CopyFrom(subject)
    connection.execute(insert(EVENTS).values(run=run, sequence=sequence, event=event.SerializeToString()))


def events_after(connection: Connection, run: str, sequence: int) -> list[pb.Event]:
    """The next events after ``sequence``, oldest first: as many as go into one batch of bounded size, at least one."""
    newer = (EVENTS.c.run == run) & (EVENTS.c.sequence > sequence)
    rows = connection.execute(select(EVENTS.c.event).where(newer).order_by(EVENTS.c.sequence).limit(MAX_EVENTS))
    events: list[pb.Event] = []
    size_bytes = 0
    for row in rows:
        events.append(pb.Event.FromString(row.event))
        size_bytes += len(row.event)
        if size_bytes >= MAX_BYTES:
            rows.close()
            break
    return events
