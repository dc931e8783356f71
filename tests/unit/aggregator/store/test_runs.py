"""Runs and their events and measurements, over both databases."""

import threading

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from fednano.errors import ResourceNotFound, RunEnded, TooFewUpdates
from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store import clients, events, measurements, runs
from services.aggregator.store.database import Store

CONFIG = pb.RunConfig(round_count=3, clients_per_round=2, model_digest="d" * 64)


def add_run(connection: Connection, run: str, request_id: str = "") -> pb.Run:
    return runs.insert_run(connection, run, f"Run {run}", CONFIG, request_id)


def all_events(connection: Connection, run: str, after: int = 0) -> list[pb.Event]:
    found: list[pb.Event] = []
    while batch := events.events_after(connection, run, found[-1].sequence if found else after):
        found += batch
    return found


def test_a_run_is_read_as_it_was_written(store: Store) -> None:
    with store.transaction() as connection:
        created = add_run(connection, "a")
    with store.transaction() as connection:
        assert runs.load_run(connection, "a") == created
    assert (created.name, created.display_name, created.config) == ("runs/a", "Run a", CONFIG)
    assert created.state == pb.Run.STATE_PENDING


def test_an_unknown_run_is_named(store: Store) -> None:
    with pytest.raises(ResourceNotFound, match="runs/absent"), store.transaction() as connection:
        runs.load_run(connection, "absent")


def test_a_request_makes_one_run(store: Store) -> None:
    with store.transaction() as connection:
        created = add_run(connection, "a", "request")
        add_run(connection, "b")
        add_run(connection, "c")
    with store.transaction() as connection:
        assert runs.find_run_by_request(connection, "request") == created
    with pytest.raises(IntegrityError), store.transaction() as connection:
        add_run(connection, "d", "request")
    with store.transaction() as connection:
        assert runs.find_run(connection, "d") is None


def test_runs_are_listed_newest_first_page_by_page(store: Store) -> None:
    with store.transaction() as connection:
        for run in ["b", "a", "d", "c", "e"]:
            add_run(connection, run)
        pages = [[run.name for run in runs.list_runs(connection, limit=2)]]
        while pages[-1]:
            before = pages[-1][-1].removeprefix("runs/")
            pages.append([run.name for run in runs.list_runs(connection, before=before, limit=2)])
    assert pages == [["runs/e", "runs/c"], ["runs/d", "runs/a"], ["runs/b"], []]


def test_runs_that_have_not_ended_are_found_oldest_first(store: Store) -> None:
    with store.transaction() as connection:
        for run in ["b", "a", "c"]:
            add_run(connection, run)
        runs.end_run(connection, "a", pb.Run.STATE_CANCELLED)
        runs.pause_run(connection, "c")
        assert runs.unended_runs(connection) == ["b", "c"]


def test_a_run_goes_through_its_states(store: Store) -> None:
    with store.transaction() as connection:
        add_run(connection, "a")
        runs.start_run(connection, "a")
        assert runs.pause_run(connection, "a").state == pb.Run.STATE_PAUSED
        assert runs.resume_run(connection, "a").state == pb.Run.STATE_RUNNING
        failed = runs.end_run(connection, "a", pb.Run.STATE_FAILED, TooFewUpdates("1 of 2 updates"))
        assert runs.end_run(connection, "a", pb.Run.STATE_SUCCEEDED) == failed
    assert failed.failure == pb.Failure(reason=TooFewUpdates.reason, message="1 of 2 updates")
    assert failed.end_time.ToSeconds() >= failed.start_time.ToSeconds() >= failed.create_time.ToSeconds() > 0
    with pytest.raises(RunEnded), store.transaction() as connection:
        runs.pause_run(connection, "a")


def test_what_a_run_waits_for_is_an_event_only_when_it_changes(store: Store) -> None:
    with store.transaction() as connection:
        add_run(connection, "a")
        assert runs.set_waiting_for(connection, "a", "clients 1/3")
        assert not runs.set_waiting_for(connection, "a", "clients 1/3")
        assert runs.load_run(connection, "a").waiting_for == "clients 1/3"
        assert [event.sequence for event in all_events(connection, "a")] == [1, 2]


def test_every_change_is_an_event_and_none_is_missing(store: Store) -> None:
    with store.transaction() as connection:
        add_run(connection, "a")
        add_run(connection, "b")
        started = runs.start_run(connection, "a")
        runs.start_run(connection, "b")
        found = all_events(connection, "a")
    assert [event.sequence for event in found] == [1, 2]
    assert found[-1].run == started
    assert [event.run.state for event in found] == [pb.Run.STATE_PENDING, pb.Run.STATE_RUNNING]


def test_a_change_that_is_taken_back_leaves_no_gap_in_the_events(store: Store) -> None:
    with store.transaction() as connection:
        add_run(connection, "a")

    def change_and_fail() -> None:
        with store.transaction() as connection:
            runs.set_waiting_for(connection, "a", "nothing")
            runs.load_run(connection, "absent")

    with pytest.raises(ResourceNotFound):
        change_and_fail()
    with store.transaction() as connection:
        runs.start_run(connection, "a")
        assert [event.sequence for event in all_events(connection, "a")] == [1, 2]


def test_events_written_by_many_threads_have_no_gap_and_no_repeat(store: Store) -> None:
    with store.transaction() as connection:
        add_run(connection, "a")

    def write(thread: int) -> None:
        for number in range(10):
            with store.transaction() as connection:
                runs.set_waiting_for(connection, "a", f"{thread} {number}")

    threads = [threading.Thread(target=write, args=[thread]) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    with store.transaction() as connection:
        found = all_events(connection, "a")
        assert [event.sequence for event in found] == list(range(1, 62))
        assert all_events(connection, "a", after=58) == found[58:]
        assert runs.load_run(connection, "a").event_sequence == 61


def test_measurements_are_numbered_and_read_from_any_of_them_on(store: Store) -> None:
    name, client = RoundName(run="a", number=1), ClientName(run="a", client="c")
    with store.transaction() as connection:
        add_run(connection, "a")
        measured = [(client, {"train/loss": 0.1 + 0.2, "bytes/x": 2.0**60}), (None, {"nan": float("nan"), "z": 1.0})]
        measurements.append_measurements(connection, name, measured)
        measurements.append_measurements(connection, name, [(None, {"later": -1.5})])
    with store.transaction() as connection:
        found = measurements.list_measurements(connection, "a", limit=100)
        assert measurements.list_measurements(connection, "a", after=2, limit=1) == found[2:3]
    assert [(point.sequence, point.client, point.key, point.value) for point in found] == [
        (1, "runs/a/clients/c", "bytes/x", 2.0**60),
        (2, "runs/a/clients/c", "train/loss", 0.1 + 0.2),
        (3, "", "z", 1.0),
        (4, "", "later", -1.5),
    ]


def test_any_text_can_be_kept(store: Store) -> None:
    text = "a\0b 'quoted\" \\ ; -- %s :x ünï 🙂"
    with store.transaction() as connection:
        runs.insert_run(connection, "a", text, CONFIG, text)
        clients.put_client(
            connection, ClientName(run="a", client="c"), display_name=text, example_count=1, parameter_counts={text: 1}
        )
        shown = runs.load_run(connection, "a").display_name
        assert shown == text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        assert runs.find_run_by_request(connection, text) is not None
        assert clients.load_client(connection, ClientName(run="a", client="c")).parameter_counts == {text: 1}
