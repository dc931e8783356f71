"""What Prometheus sees of the aggregator's runs: read from the database at each scrape, so a restart loses no count."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select

from fednano.errors import WireError
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.database import Store
from services.aggregator.store.runs import ENDED
from services.aggregator.store.schema import CLIENTS, PARTICIPANTS, ROUNDS, RUNS

# Clients are named only in runs with at most so many: a label's values are to stay few.
MAX_NAMED_CLIENTS = 100
MERGE_SECONDS = "merge/seconds"


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What one run has done so far."""

    updates: int
    rounds: int
    round_seconds: float
    merges: int
    merge_seconds: float


class RunCollector(Collector):
    """Any thread may scrape."""

    def __init__(self, store: Store, state: Path) -> None:
        self._store, self._state = store, state
        # A run that has ended does no more: it is counted once.
        self._ended: dict[str, Tally] = {}

    def collect(self) -> Iterator[Metric]:
        is_up = True
        try:
            yield from self._runs_and_clients()
            yield from self._tallies()
        except WireError:
            is_up = False
        yield GaugeMetricFamily("fednano_store_up", "1 where the database answers.", value=float(is_up))
        free = shutil.disk_usage(self._state).free
        yield GaugeMetricFamily("fednano_state_free_bytes", "Room left where the state folder is.", value=free)

    def _runs_and_clients(self) -> Iterator[Metric]:
        with self._store.transaction() as connection:
            runs = connection.execute(select(RUNS.c.state, func.count()).group_by(RUNS.c.state)).all()
            events = connection.execute(select(func.coalesce(func.sum(RUNS.c.event_count), 0))).scalar_one()
            clients = connection.execute(
                select(CLIENTS.c.run, CLIENTS.c.client, CLIENTS.c.state, CLIENTS.c.step)
                .join(RUNS, RUNS.c.run == CLIENTS.c.run)
                .where(RUNS.c.state.not_in(ENDED))
            ).all()
        yield _by_state("fednano_runs", "Runs.", pb.Run.State, {row[0]: row[1] for row in runs})
        counts: dict[int, int] = {}
        for client in clients:
            counts[client.state] = counts.get(client.state, 0) + 1
        yield _by_state("fednano_clients", "Clients of runs that have not ended.", pb.Client.State, counts)
        yield CounterMetricFamily("fednano_events", "Events of all runs.", value=float(events))
        steps = GaugeMetricFamily(
            "fednano_client_step", "Local steps that a client has done in its round.", labels=["run", "client"]
        )
        sizes = {client.run: sum(other.run == client.run for other in clients) for client in clients}
        for client in clients:
            if sizes[client.run] <= MAX_NAMED_CLIENTS and client.state == pb.Client.STATE_ACTIVE:
                steps.add_metric([client.run, client.client], float(client.step))
        yield steps

    def _tallies(self) -> Iterator[Metric]:
        with self._store.transaction() as connection:
            runs = connection.execute(select(RUNS.c.run, RUNS.c.state)).all()
        tallies = []
        for run, state in runs:
            tally = self._ended.get(run)
            if tally is None:
                # Each run in a transaction of its own: the services wait for no long one.
                with self._store.transaction() as connection:
                    tally = _tally(connection, run)
                if state in ENDED:
                    self._ended[run] = tally
            tallies.append(tally)
        updates = sum(tally.updates for tally in tallies)
        yield CounterMetricFamily("fednano_updates_accepted", "Updates accepted.", value=updates)
        yield SummaryMetricFamily(
            "fednano_round_seconds",
            "From a round's begin to its end.",
            count_value=sum(tally.rounds for tally in tallies),
            sum_value=sum(tally.round_seconds for tally in tallies),
        )
        yield SummaryMetricFamily(
            "fednano_merge_seconds",
            "Computing of merges.",
            count_value=sum(tally.merges for tally in tallies),
            sum_value=sum(tally.merge_seconds for tally in tallies),
        )


def _tally(connection: Connection, run: str) -> Tally:
    accepted = (PARTICIPANTS.c.run == run) & (PARTICIPANTS.c.adapter_sha256 != "")
    updates = connection.execute(select(func.count()).select_from(PARTICIPANTS).where(accepted)).scalar_one()
    columns = (ROUNDS.c.create_time_s, ROUNDS.c.end_time_s, ROUNDS.c.merge_metrics)
    rounds = connection.execute(select(*columns).where(ROUNDS.c.run == run)).all()
    seconds = [turn.end_time_s - turn.create_time_s for turn in rounds if turn.end_time_s is not None]
    merges = [turn.merge_metrics[MERGE_SECONDS] for turn in rounds if MERGE_SECONDS in turn.merge_metrics]
    return Tally(
        updates=updates,
        rounds=len(seconds),
        round_seconds=sum(seconds),
        merges=len(merges),
        merge_seconds=sum(merges),
    )


def _by_state(name: str, words: str, states: type, counts: dict[int, int]) -> GaugeMetricFamily:
    """A value for every state, 0 too: a series that comes and goes is hard to alert on."""
    family = GaugeMetricFamily(name, words, labels=["state"])
    for state, number in states.items():  # type: ignore[attr-defined]
        if number:
            family.add_metric([state.removeprefix("STATE_").lower()], float(counts.get(number, 0)))
    return family
