"""What an operator does to a run takes effect at once, and once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from aggregator_process import run_config
from run_scene import RunScene, name, open_scene

from fednano.errors import ClientEvicted, ClientNotSelected, RunEnded
from fednano.names import RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.steering import end_run, evict_client
from services.aggregator.store import clients, rounds, runs
from services.aggregator.store.database import Store
from services.aggregator.store.events import events_after
from services.aggregator.store.participants import load_participation

FIRST = RoundName(run="r", number=1)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[RunScene]:
    """Client a gave its update for round 1, client b did not yet."""
    store = Store(f"sqlite:///{tmp_path / 'aggregator.sqlite3'}")
    scene = open_scene(tmp_path, store, ArtifactStore(tmp_path))
    scene.create(run_config())
    scene.join("a", "b", "c")
    state = pb.Round.STATE_TRAINING
    scene.change(
        lambda connection: rounds.open_round(
            connection, FIRST, state=state, clients=["a", "b"], base_sha256="b" * 64, deadline_s=4e9
        )
    )
    scene.update("a")
    yield scene
    store.close()


def set_state(scene: RunScene, state: "pb.Round.State.ValueType") -> None:
    scene.change(lambda connection: rounds.set_round_state(connection, FIRST, state))


def evict(scene: RunScene, client: str) -> None:
    scene.change(lambda connection: evict_client(connection, name(client)))


def event_count(scene: RunScene) -> int:
    return scene.run.event_sequence


def test_an_evicted_clients_unmerged_update_counts_no_more(scene: RunScene) -> None:
    evict(scene, "a")
    assert scene.states() == {"a": "EVICTED", "b": "SELECTED"}
    assert scene.round().update_count == 0
    assert "train/loss" not in scene.round().metrics


def test_an_update_that_is_merged_stays_counted(scene: RunScene) -> None:
    for state in (pb.Round.STATE_MERGING, pb.Round.STATE_EVALUATING):
        set_state(scene, state)
    evict(scene, "a")
    assert scene.round().update_count == 1


def test_evicting_again_changes_nothing(scene: RunScene) -> None:
    evict(scene, "a")
    before = event_count(scene)
    evict(scene, "a")
    assert event_count(scene) == before


def test_an_evicted_client_may_neither_join_nor_answer_nor_leave(scene: RunScene) -> None:
    evict(scene, "c")
    with pytest.raises(ClientEvicted):
        scene.join("c")
    with scene.context.store.transaction() as connection:
        clients.leave_run(connection, name("c"))
        assert clients.client_state(connection, name("c")) == pb.Client.STATE_EVICTED
        with pytest.raises(ClientEvicted):
            load_participation(connection, FIRST, name("c"))


def test_a_replaced_client_answers_too_late(scene: RunScene) -> None:
    set_state(scene, pb.Round.STATE_MERGING)
    assert scene.states() == {"a": "UPDATED", "b": "REPLACED"}
    with pytest.raises(ClientNotSelected), scene.context.store.transaction() as connection:
        load_participation(connection, FIRST, name("b"))


def test_a_second_attempt_keeps_what_was_accepted(scene: RunScene) -> None:
    scene.change(lambda connection: rounds.retry_round(connection, FIRST, ["b", "c"], deadline_s=4e9))
    assert scene.states() == {"a": "UPDATED", "b": "SELECTED", "c": "SELECTED"}
    assert (scene.round().attempt, scene.round().update_count) == (2, 1)


def test_a_cancelled_run_takes_its_open_round_with_it(scene: RunScene) -> None:
    scene.change(lambda connection: end_run(connection, "r", pb.Run.STATE_CANCELLED))
    assert scene.round().state == pb.Round.STATE_FAILED
    before = event_count(scene)
    scene.change(lambda connection: end_run(connection, "r", pb.Run.STATE_CANCELLED))
    assert (event_count(scene), scene.run.state) == (before, pb.Run.STATE_CANCELLED)


def test_a_run_goes_back_to_the_state_that_it_was_paused_in(scene: RunScene) -> None:
    for change in (runs.pause_run, runs.pause_run, runs.resume_run, runs.resume_run):
        scene.change(lambda connection, change=change: change(connection, "r"))
    with scene.context.store.transaction() as connection:
        states = [event.run.state for event in events_after(connection, "r", 0) if event.HasField("run")]
    assert states == [pb.Run.STATE_PENDING, pb.Run.STATE_PAUSED, pb.Run.STATE_PENDING]


def test_a_run_that_has_ended_is_neither_paused_nor_resumed(scene: RunScene) -> None:
    scene.change(lambda connection: end_run(connection, "r", pb.Run.STATE_CANCELLED))
    for change in (runs.pause_run, runs.resume_run):
        with pytest.raises(RunEnded):
            scene.change(lambda connection, change=change: change(connection, "r"))


def test_the_same_words_are_no_new_event(scene: RunScene) -> None:
    scene.change(lambda connection: runs.set_waiting_for(connection, "r", "updates 1/2"))
    before = event_count(scene)
    scene.change(lambda connection: runs.set_waiting_for(connection, "r", "updates 1/2"))
    assert (event_count(scene), scene.run.waiting_for) == (before, "updates 1/2")
