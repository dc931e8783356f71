"""A driver brings its run to an end, from wherever the database says that it is, and whatever happens."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aggregator_process import run_config
from google.protobuf.duration_pb2 import Duration
from run_scene import RunScene, name, open_scene
from sqlalchemy import Connection

from fednano.errors import StoreUnavailable
from fednano.v1 import error_reason_pb2, run_pb2
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.leases import Leases
from services.aggregator.steering import end_run, evict_client
from services.aggregator.store import clients, runs
from services.aggregator.store.database import Store

TRAINING, MERGING, EVALUATING, SUCCEEDED = (
    run_pb2.Round.STATE_TRAINING,
    run_pb2.Round.STATE_MERGING,
    run_pb2.Round.STATE_EVALUATING,
    run_pb2.Round.STATE_SUCCEEDED,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'aggregator.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def scene(tmp_path: Path, store: Store) -> RunScene:
    return open_scene(tmp_path, store, ArtifactStore(tmp_path))


def short(config: run_pb2.RunConfig, *, round_s: float = 30.0, join_s: float = 30.0) -> run_pb2.RunConfig:
    """The same run with other deadlines."""
    config.round_timeout.CopyFrom(Duration(nanos=int(round_s * 1e9) % 10**9, seconds=int(round_s)))
    config.join_timeout.CopyFrom(Duration(nanos=int(join_s * 1e9) % 10**9, seconds=int(join_s)))
    return config


async def begin_training(scene: RunScene, *ids: str) -> None:
    """Passes round 0."""
    scene.join(*ids)
    await scene.until_round(0, EVALUATING)
    for client in scene.states(0):
        scene.evaluate(client)
    await scene.until_round(1, TRAINING)


async def test_a_run_says_what_it_waits_for(scene: RunScene) -> None:
    scene.create(run_config(rounds=1))
    async with scene.driven() as driver:
        await scene.until(lambda: scene.run.waiting_for == "clients 0/2")
        scene.join("a")
        await scene.until(lambda: scene.run.waiting_for == "clients 1/2")
        scene.join("b")
        await scene.until(lambda: scene.run.waiting_for == "evaluations 0/2")
        scene.evaluate("a")
        await scene.until(lambda: scene.run.waiting_for == "evaluations 1/2")
        scene.evaluate("b")
        await scene.until(lambda: scene.run.waiting_for == "updates 0/2")
        scene.update("a")
        await scene.until(lambda: scene.run.waiting_for == "updates 1/2")
        scene.update("b")
        await scene.until_round(1, EVALUATING)
        for client in "ab":
            scene.evaluate(client, 1)
        await driver
    assert (scene.run.state, scene.run.waiting_for) == (run_pb2.Run.STATE_SUCCEEDED, "")


async def test_a_round_with_too_few_updates_asks_other_clients(scene: RunScene) -> None:
    config = short(run_config(rounds=1), round_s=1.0)
    scene.create(config)
    async with scene.driven():
        await begin_training(scene, "a", "b")
        scene.join("c")
        scene.update("a")
        await scene.until_round(1, TRAINING, attempt=2)
        states = scene.states()
        assert states == {"a": "UPDATED", "b": "REPLACED", "c": "SELECTED"}
        scene.update("c")
        await scene.until_round(1, EVALUATING, attempt=2)
    assert scene.round().update_count == 2


async def test_a_second_attempt_without_enough_updates_fails_the_run_with_a_reason(scene: RunScene) -> None:
    scene.create(short(run_config(rounds=1), round_s=0.5))
    async with scene.driven() as driver:
        scene.join("a", "b")
        await scene.until_round(1, TRAINING)
        scene.update("a")
        await driver
    assert scene.run.state == run_pb2.Run.STATE_FAILED
    assert scene.run.failure.reason == error_reason_pb2.ERROR_REASON_TOO_FEW_UPDATES
    assert scene.run.failure.message.startswith("runs/r/rounds/1 has 1 of 2 updates after its second attempt")
    assert scene.round().state == run_pb2.Round.STATE_FAILED


async def test_a_round_merges_at_its_deadline_with_enough_updates(scene: RunScene) -> None:
    scene.create(short(run_config(rounds=1, min_updates=1), round_s=1.0))
    async with scene.driven():
        await begin_training(scene, "a", "b")
        scene.update("b")
        await scene.until_round(1, EVALUATING)
        assert scene.states() == {"a": "REPLACED", "b": "UPDATED"}


async def test_a_run_whose_clients_all_left_fails(scene: RunScene) -> None:
    scene.create(short(run_config(rounds=1), join_s=0.7))
    async with scene.driven() as driver:
        await begin_training(scene, "a", "b")
        for client in "ab":
            scene.change(lambda connection, client=client: clients.leave_run(connection, name(client)))
        await scene.until(lambda: scene.run.waiting_for == "clients 0/2")
        await driver
    assert scene.run.failure.reason == error_reason_pb2.ERROR_REASON_TOO_FEW_CLIENTS


async def test_a_client_that_left_and_returned_is_asked_again(scene: RunScene) -> None:
    scene.create(run_config(rounds=1))
    async with scene.driven():
        await begin_training(scene, "a", "b")
        scene.update("a")
        scene.change(lambda connection: clients.leave_run(connection, name("b")))
        await scene.until(lambda: scene.run.waiting_for == "clients 0/1")
        scene.join("b")
        await scene.until_round(1, TRAINING, attempt=2)
        assert scene.states() == {"a": "UPDATED", "b": "SELECTED"}


async def test_silent_clients_are_lost_and_not_waited_for(store: Store, tmp_path: Path) -> None:
    times_s = [1000.0]
    scene = open_scene(tmp_path, store, ArtifactStore(tmp_path), Leases(1.5, lambda: times_s[-1]))
    scene.create(run_config(rounds=1, min_updates=1))
    async with scene.driven():
        await begin_training(scene, "a", "b")
        scene.update("a")
        times_s.append(1002.0)
        await scene.until(lambda: scene.round().merged_adapter_sha256 != "")
    assert scene.states() == {"a": "UPDATED", "b": "REPLACED"}
    with store.transaction() as connection:
        assert clients.client_state(connection, name("b")) == run_pb2.Client.STATE_LOST


async def test_a_driver_goes_on_where_another_one_stopped(scene: RunScene) -> None:
    scene.create(run_config(rounds=1))
    async with scene.driven():
        await begin_training(scene, "a", "b")
        scene.update("a")
    scene.update("b", value=3.0)
    async with scene.driven():
        await scene.until_round(1, EVALUATING)
    merged = scene.round().merged_adapter_sha256
    async with scene.driven() as driver:
        for client in "ab":
            scene.evaluate(client, 1)
        await driver
    assert (scene.run.state, scene.round().merged_adapter_sha256) == (run_pb2.Run.STATE_SUCCEEDED, merged)


async def test_an_update_of_a_client_evicted_while_the_merge_runs_is_not_merged(store: Store, tmp_path: Path) -> None:
    class EvictingArtifacts(ArtifactStore):
        """Evicts client a when the first merge has been computed."""

        has_evicted = False

        def put(self, content: bytes) -> str:
            if is_merging() and not self.has_evicted:
                self.has_evicted = True
                scene.change(lambda connection: evict_client(connection, name("a")))
            return super().put(content)

    def is_merging() -> bool:
        return scene.run.current_round.endswith("1") and scene.round().state == MERGING

    scene = open_scene(tmp_path, store, EvictingArtifacts(tmp_path))
    alone = open_scene(tmp_path, store, ArtifactStore(tmp_path))
    scene.create(run_config(rounds=1, min_updates=1))
    async with scene.driven():
        await begin_training(scene, "a", "b")
        scene.update("a", value=5.0)
        scene.update("b", value=1.0)
        await scene.until_round(1, EVALUATING)
    assert scene.states() == {"a": "EVICTED", "b": "UPDATED"}
    assert scene.round().update_count == 1
    tensors = alone.context.artifacts.verified_path(scene.round().merged_adapter_sha256).read_bytes()
    assert b"\x00\x00\x80\x3f" * 8 in tensors


async def test_too_few_updates_after_an_eviction_make_a_second_attempt(scene: RunScene) -> None:
    scene.create(run_config(rounds=1))
    async with scene.driven():
        await begin_training(scene, "a", "b")
        scene.update("a")
        scene.join("c")
        scene.change(lambda connection: evict_client(connection, name("a")))
        scene.update("b")
        await scene.until_round(1, TRAINING, attempt=2)
        assert scene.states() == {"a": "EVICTED", "b": "UPDATED", "c": "SELECTED"}


async def test_a_paused_run_ends_its_round_and_opens_no_other(scene: RunScene) -> None:
    scene.create(run_config(rounds=2))
    async with scene.driven():
        await begin_training(scene, "a", "b")
        scene.change(lambda connection: runs.pause_run(connection, "r"))
        for client in "ab":
            scene.update(client)
        await scene.until_round(1, SUCCEEDED)
        await scene.until(lambda: scene.run.waiting_for == "resume")
    async with scene.driven():
        await scene.until(lambda: scene.run.waiting_for == "resume")
        scene.change(lambda connection: runs.resume_run(connection, "r"))
        await scene.until_round(2, TRAINING)
    assert scene.run.state == run_pb2.Run.STATE_RUNNING


async def test_a_pending_run_that_is_paused_waits_for_clients_anew_when_resumed(scene: RunScene) -> None:
    scene.create(short(run_config(rounds=1), join_s=0.8))
    async with scene.driven() as driver:
        scene.change(lambda connection: runs.pause_run(connection, "r"))
        await scene.until(lambda: scene.run.waiting_for == "resume")
        scene.join("a", "b")
        await scene.until(lambda: scene.run.active_client_count == 2)
        assert scene.run.state == run_pb2.Run.STATE_PAUSED
        scene.change(lambda connection: runs.resume_run(connection, "r"))
        await scene.until_round(0, EVALUATING)
        assert not driver.done()


async def test_a_cancelled_run_ends_its_driver_and_its_round(scene: RunScene) -> None:
    scene.create(run_config(rounds=1))
    async with scene.driven() as driver:
        await begin_training(scene, "a", "b")
        scene.change(lambda connection: end_run(connection, "r", run_pb2.Run.STATE_CANCELLED))
        await driver
    assert scene.run.state == run_pb2.Run.STATE_CANCELLED
    assert scene.round().state == run_pb2.Round.STATE_FAILED


async def test_an_unexpected_fault_fails_the_run_instead_of_leaving_it(scene: RunScene) -> None:
    scene.create(run_config(rounds=1))
    async with scene.driven() as driver:
        await begin_training(scene, "a", "b")
        for client in "ab":
            scene.update_with(client, 1, b"no adapter at all")
        await driver
    assert scene.run.state == run_pb2.Run.STATE_FAILED
    assert scene.run.failure.reason == error_reason_pb2.ERROR_REASON_INTERNAL


async def test_a_missing_artifact_fails_the_run_and_is_named(scene: RunScene) -> None:
    scene.create(run_config(rounds=1))
    async with scene.driven() as driver:
        await begin_training(scene, "a", "b")
        scene.update("a")
        lost = scene.context.artifacts.path(scene.round().base_adapter_sha256)
        lost.unlink()
        scene.update("b")
        await driver
    assert scene.run.failure.reason == error_reason_pb2.ERROR_REASON_ARTIFACT_CORRUPT
    assert scene.round().base_adapter_sha256 in scene.run.failure.message


class FlakyStore(Store):
    """Away at some of the transactions that the driver begins."""

    calls = 0

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        task = asyncio.current_task()
        if task is not None and task.get_name().startswith("life of"):
            self.calls += 1
            if self.calls in (1, 3, 6, 11):
                raise StoreUnavailable("the database is away")
        with super().transaction() as connection:
            yield connection


async def test_a_store_that_is_away_now_and_then_is_waited_for(tmp_path: Path) -> None:
    store = FlakyStore(f"sqlite:///{tmp_path / 'aggregator.sqlite3'}")
    scene = open_scene(tmp_path, store, ArtifactStore(tmp_path))
    scene.create(run_config(rounds=1))
    async with scene.driven():
        await begin_training(scene, "a", "b")
    assert scene.run.state == run_pb2.Run.STATE_RUNNING
    assert store.calls > 11
    store.close()
