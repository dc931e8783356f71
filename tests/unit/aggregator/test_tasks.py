"""A client's task follows from its part in the newest round, and is the same however often it is asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from aggregator_process import run_config
from run_scene import RunScene, name, open_scene
from sqlalchemy import Connection

from fednano.errors import ClientEvicted, ResourceNotFound
from fednano.names import RoundName
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.steering import end_run, evict_client
from services.aggregator.store import rounds, runs
from services.aggregator.store.database import Store
from services.aggregator.store.situations import load_situation
from services.aggregator.tasks import directive, next_task

FIRST = RoundName(run="r", number=1)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[RunScene]:
    """Clients a and b are asked to train in round 1; client c waits."""
    store = Store(f"sqlite:///{tmp_path / 'aggregator.sqlite3'}")
    scene = open_scene(tmp_path, store, ArtifactStore(tmp_path))
    scene.create(run_config())
    scene.join("a", "b", "c")
    base = scene.context.artifacts.put(b"the first adapter")
    scene.change(
        lambda connection: rounds.open_round(
            connection,
            FIRST,
            state=run_pb2.Round.STATE_TRAINING,
            clients=["a", "b"],
            base_sha256=base,
            deadline_s=4e9,
        )
    )
    yield scene
    store.close()


def task_of(scene: RunScene, client: str) -> pb.PollTaskResponse | None:
    with scene.context.store.transaction() as connection:
        return next_task(load_situation(connection, name(client)), scene.context.artifacts)


def directive_of(scene: RunScene, client: str, turn: str = "runs/r/rounds/1") -> str:
    with scene.context.store.transaction() as connection:
        return pb.Directive.Name(directive(load_situation(connection, name(client)), turn)).removeprefix("DIRECTIVE_")


def again(connection: Connection) -> None:
    rounds.retry_round(connection, FIRST, ["c"], deadline_s=4e9)


def test_a_selected_client_trains_until_its_update_is_here(scene: RunScene) -> None:
    first = task_of(scene, "a")
    assert first is not None
    assert first.train.round == str(FIRST)
    assert task_of(scene, "a") is not None
    scene.update("a")
    assert task_of(scene, "a") is None


def test_a_client_that_is_not_selected_waits(scene: RunScene) -> None:
    assert task_of(scene, "c") is None


def test_a_second_attempt_gives_the_task_to_another_client(scene: RunScene) -> None:
    scene.update("a")
    scene.change(again)
    assert task_of(scene, "b") is None
    replacement = task_of(scene, "c")
    assert replacement is not None
    assert replacement.WhichOneof("task") == "train"
    assert directive_of(scene, "b") == "ABANDON_ROUND"
    assert directive_of(scene, "c") == "CONTINUE"


def test_only_who_is_in_the_merge_evaluates_it(scene: RunScene) -> None:
    scene.update("a")
    merged = scene.context.artifacts.put(b"the merged adapter")

    def move_on(connection: Connection) -> None:
        rounds.set_round_state(connection, FIRST, run_pb2.Round.STATE_MERGING)
        rounds.set_merged(connection, FIRST, merged)
        rounds.set_round_state(connection, FIRST, run_pb2.Round.STATE_EVALUATING)

    scene.change(move_on)
    evaluation = task_of(scene, "a")
    assert evaluation is not None
    assert evaluation.evaluate.adapter.sha256 == merged
    assert task_of(scene, "b") is None
    scene.evaluate("a", 1)
    assert task_of(scene, "a") is None


def test_an_evicted_client_is_refused_and_told_to_leave(scene: RunScene) -> None:
    scene.change(lambda connection: evict_client(connection, name("a")))
    with pytest.raises(ClientEvicted):
        task_of(scene, "a")
    assert directive_of(scene, "a") == "LEAVE"


def test_a_paused_run_lets_the_round_in_progress_go_on(scene: RunScene) -> None:
    scene.change(lambda connection: runs.pause_run(connection, "r"))
    assert task_of(scene, "a") is not None
    assert directive_of(scene, "a") == "CONTINUE"


def test_a_run_that_ended_ends_its_clients(scene: RunScene) -> None:
    scene.change(lambda connection: end_run(connection, "r", run_pb2.Run.STATE_CANCELLED))
    ended = task_of(scene, "c")
    assert ended is not None
    assert ended.end.run_state == run_pb2.Run.STATE_CANCELLED
    assert directive_of(scene, "a") == "LEAVE"


def test_work_for_an_older_round_is_in_vain(scene: RunScene) -> None:
    assert directive_of(scene, "a", "runs/r/rounds/0") == "ABANDON_ROUND"
    assert directive_of(scene, "a", "") == "CONTINUE"


def test_a_client_that_never_joined_is_unknown(scene: RunScene) -> None:
    with pytest.raises(ResourceNotFound):
        directive_of(scene, "z")
