"""Leases run out in silence, but never for time in which nobody listened."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from fednano.names import ClientName
from fednano.v1 import run_pb2 as pb
from services.aggregator.leases import FLUSH_INTERVAL_S, Leases
from services.aggregator.store import clients, runs
from services.aggregator.store.database import Store

A, B = ClientName(run="r", client="a"), ClientName(run="r", client="b")


@dataclass
class Clock:
    time_s: float = 1000.0

    def __call__(self) -> float:
        return self.time_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def listen(leases: Leases, clock: Clock, seconds: int) -> list[str]:
    """Looks each second, as a driver does; who was silent at the last look."""
    silent: list[str] = []
    for _ in range(seconds):
        clock.time_s += 1.0
        silent = leases.silent("r", ["a", "b"])
    return silent


def test_only_the_silent_client_is_lost(clock: Clock) -> None:
    leases = Leases(5.0, clock)
    leases.silent("r", ["a", "b"])
    assert listen(leases, clock, 4) == []
    leases.hear(A)
    assert listen(leases, clock, 3) == ["b"]


def test_nobody_is_lost_right_after_a_start(clock: Clock) -> None:
    assert Leases(5.0, clock).silent("r", ["a", "b"]) == []


def test_nobody_is_lost_for_the_time_that_the_process_was_stopped(clock: Clock) -> None:
    leases = Leases(5.0, clock)
    leases.hear(A)
    leases.silent("r", ["a", "b"])
    clock.time_s += 60.0
    assert leases.silent("r", ["a", "b"]) == []
    assert listen(leases, clock, 6) == ["a", "b"]


def test_what_was_heard_is_written_now_and_then_and_once(clock: Clock, tmp_path: Path) -> None:
    store, leases = Store(f"sqlite:///{tmp_path / 'aggregator.sqlite3'}"), Leases(5.0, clock)
    with store.transaction() as connection:
        runs.insert_run(connection, "r", "", pb.RunConfig(), "")
        clients.put_client(connection, A, display_name="", example_count=1, parameter_counts={})
    assert not leases.is_flush_due("r")
    leases.hear(A, step=17)
    clock.time_s += FLUSH_INTERVAL_S
    assert leases.is_flush_due("r")
    with store.transaction() as connection:
        before = clients.load_client(connection, A)
        leases.flush(connection, "r")
        after = clients.load_client(connection, A)
    assert after.step == 17
    # Heard before the flush, by as long as that was due.
    assert before.last_heartbeat_time.seconds - after.last_heartbeat_time.seconds in range(4, 7)
    assert not leases.is_flush_due("r")
    store.close()
