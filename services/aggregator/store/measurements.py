"""A run's history of measurements: numbered without gaps, written in the transaction of what was measured."""

import math
import time
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, func, insert, select

from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.database import timestamp
from services.aggregator.store.schema import MEASUREMENTS, RUNS

# What a report may hold beyond this is not kept: it is a fault or an attack.
MAX_METRICS = 100
MAX_KEY_LENGTH = 100


def kept_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The finite numbers among the metrics, by printable key; at most ``MAX_METRICS``."""
    kept = sorted(key for key, number in metrics.items() if math.isfinite(number) and _is_key(key))
    return {key: metrics[key] for key in kept[:MAX_METRICS]}


def append_measurements(
    connection: Connection, name: RoundName, measured: Iterable[tuple[ClientName | None, Mapping[str, float]]]
) -> None:
    """Adds each client's metrics to the history, and the whole round's where the client is None."""
    flat = [(client, key, number) for client, metrics in measured for key, number in kept_metrics(metrics).items()]
    if not flat:
        return
    # Whoever else counts this run's measurements waits for this transaction. SQLite has one writer anyway.
    connection.execute(select(RUNS.c.run).where(RUNS.c.run == name.run).with_for_update())
    newest = select(func.max(MEASUREMENTS.c.sequence)).where(MEASUREMENTS.c.run == name.run)
    first = 1 + (connection.execute(newest).scalar_one() or 0)
    given = {"run": name.run, "number": name.number, "create_time_s": time.time()}
    rows = [
        {**given, "sequence": sequence, "client": client.client if client else "", "key": key, "value": number}
        for sequence, (client, key, number) in enumerate(flat, first)
    ]
    connection.execute(insert(MEASUREMENTS), rows)


def list_measurements(connection: Connection, run: str, *, after: int = 0, limit: int) -> list[pb.Measurement]:
    """The measurements with a sequence above ``after``, oldest first."""
    newer = (MEASUREMENTS.c.run == run) & (MEASUREMENTS.c.sequence > after)
    rows = connection.execute(select(MEASUREMENTS).where(newer).order_by(MEASUREMENTS.c.sequence).limit(limit))
    return [
        pb.Measurement(
            sequence=row.sequence,
            create_time=timestamp(row.create_time_s),
            round_number=row.number,
            client=str(ClientName(run=run, client=row.client)) if row.client else "",
            key=row.key,
            value=row.value,
        )
        for row in rows
    ]


def _is_key(text: str) -> bool:
    return 0 < len(text) <= MAX_KEY_LENGTH and text.isprintable()
