"""The events of a run: written in the transaction that makes the change, numbered without gaps."""

import time

from sqlalchemy import Connection, insert, select, update

from fednano.v1 import run_pb2 as pb
from services.aggregator.store.database import timestamp
from services.aggregator.store.schema import EVENTS, RUNS


def append_event(connection: Connection, run: str, subject: pb.Run | pb.Round | pb.Client) -> None:
    """Adds the resource, as it is now, to the run's events."""
    counted = update(RUNS).where(RUNS.c.run == run).values(event_count=RUNS.c.event_count + 1)
    sequence = connection.execute(counted.returning(RUNS.c.event_count)).scalar_one()
    event = pb.Event(sequence=sequence, create_time=timestamp(time.time()))
    match subject:
        case pb.Run():
            event.run.CopyFrom(subject)
        case pb.Round():
            event.round.CopyFrom(subject)
        case pb.Client():
            event.client.CopyFrom(subject)
    connection.execute(insert(EVENTS).values(run=run, sequence=sequence, event=event.SerializeToString()))


def events_after(connection: Connection, run: str, sequence: int, limit: int = 100) -> list[pb.Event]:
    """At most ``limit`` events that are newer than ``sequence``, oldest first."""
    newer = (EVENTS.c.run == run) & (EVENTS.c.sequence > sequence)
    rows = connection.execute(select(EVENTS.c.event).where(newer).order_by(EVENTS.c.sequence).limit(limit))
    return [pb.Event.FromString(row.event) for row in rows]
