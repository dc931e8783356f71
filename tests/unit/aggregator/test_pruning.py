"""What clients sent in rounds long merged is deleted, and nothing that anybody still names."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256 as sha256_of
from pathlib import Path

import pytest
from aggregator_process import run_config
from run_scene import open_scene

from fednano.errors import ArtifactCorrupt, StoreUnavailable
from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.pruning import UpdatePruning
from services.aggregator.run_context import RunContext
from services.aggregator.store import clients, participants, rounds, runs
from services.aggregator.store.database import Store

SUCCEEDED, TRAINING = run_pb2.Round.STATE_SUCCEEDED, run_pb2.Round.STATE_TRAINING
BASE, MERGED, FISHER, GRAM = b"base", b"merged", b"fisher of ", b"gram of "


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'aggregator.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def context(tmp_path: Path, store: Store) -> RunContext:
    scene = open_scene(tmp_path, store, ArtifactStore(tmp_path))
    return replace(scene.context, keep_update_rounds=1)


def digest(content: bytes) -> str:
    return sha256_of(content).hexdigest()


def keep(context: RunContext, content: bytes) -> str:
    """As an upload does: what is put instead is never deleted by the process that made it."""
    with context.artifacts.draft_folder() as folder:
        (folder / "file").write_bytes(content)
        context.artifacts.adopt(folder / "file", digest(content))
    return digest(content)


def add_run(context: RunContext, run: str, round_count: int, *, config: run_pb2.RunConfig | None = None) -> None:
    """A run whose client a has sent an adapter, Fisher information and, in round 1, Gram matrices."""
    with context.store.transaction() as connection:
        runs.insert_run(connection, run, "", config or run_config(), "")
        client = ClientName(run=run, client="a")
        clients.put_client(connection, client, display_name="", example_count=1, parameter_counts={})
    for number in range(1, round_count + 1):
        add_round(context, run, number)


def add_round(context: RunContext, run: str, number: int, words: bytes = b"") -> None:
    """``words`` are the adapter's bytes; the number where nothing else is said."""
    name, words = RoundName(run=run, number=number), words or str(number).encode()
    sent = {"adapter_sha256": keep(context, words), "fisher_sha256": keep(context, FISHER + words)}
    gram = {"gram_sha256": keep(context, GRAM + words)} if number == 1 else {}
    with context.store.transaction() as connection:
        base = keep(context, BASE)
        rounds.open_round(connection, name, state=TRAINING, clients=["a"], base_sha256=base, deadline_s=0.0)
        client = ClientName(run=run, client="a")
        participants.record_update(connection, name, client, example_count=1, metrics={}, **sent, **gram)
        rounds.set_merged(connection, name, keep(context, MERGED + words))
        rounds.set_round_state(connection, name, SUCCEEDED)


def kept(context: RunContext, contents: Sequence[bytes]) -> list[bytes]:
    def is_kept(content: bytes) -> bool:
        try:
            return context.artifacts.verified_path(digest(content)).read_bytes() == content
        except ArtifactCorrupt:
            return False

    return [content for content in contents if is_kept(content)]


async def test_updates_of_all_but_the_newest_rounds_are_deleted(context: RunContext) -> None:
    add_run(context, "r", 3)
    await UpdatePruning(context).prune()
    updates = [part + str(number).encode() for number in (1, 2, 3) for part in (b"", FISHER)]
    assert kept(context, updates) == [b"3", FISHER + b"3"]
    others = [BASE, MERGED + b"1", MERGED + b"2", MERGED + b"3", GRAM + b"1"]
    assert kept(context, others) == others


async def test_a_round_under_way_is_not_one_of_those_kept(context: RunContext) -> None:
    add_run(context, "r", 2)
    with context.store.transaction() as connection:
        name = RoundName(run="r", number=3)
        rounds.open_round(connection, name, state=TRAINING, clients=["a"], base_sha256=digest(BASE), deadline_s=0.0)
    await UpdatePruning(context).prune()
    assert kept(context, [b"1", b"2"]) == [b"2"]


async def test_later_prunings_take_the_rounds_that_came_since(context: RunContext) -> None:
    add_run(context, "r", 2)
    pruning = UpdatePruning(context)
    await pruning.prune()
    for number in (3, 4):
        add_round(context, "r", number)
    await pruning.prune()
    assert kept(context, [b"1", b"2", b"3", b"4"]) == [b"4"]


async def test_bytes_that_a_client_sends_again_stay(context: RunContext) -> None:
    """As one does whose training changes nothing."""
    add_run(context, "r", 2)
    add_round(context, "r", 3, words=b"1")
    await UpdatePruning(context).prune()
    assert kept(context, [b"1", b"2"]) == [b"1"]


async def test_bytes_that_another_run_names_stay(context: RunContext) -> None:
    add_run(context, "r", 3)
    add_run(context, "twin", 1)
    await UpdatePruning(context).prune()
    assert kept(context, [b"1", b"2", b"3"]) == [b"1", b"3"]


async def test_an_update_that_is_a_merged_adapter_too_stays(context: RunContext) -> None:
    """So it is where one client is alone: the merge gives its adapter back."""
    add_run(context, "r", 3)
    with context.store.transaction() as connection:
        rounds.set_merged(connection, RoundName(run="r", number=1), digest(b"1"))
    await UpdatePruning(context).prune()
    assert kept(context, [b"1", b"2", b"3"]) == [b"1", b"3"]


async def test_what_each_client_sent_is_the_result_where_nothing_is_merged(context: RunContext) -> None:
    config = run_config()
    config.method = run_pb2.METHOD_LOCAL
    add_run(context, "r", 3, config=config)
    await UpdatePruning(context).prune()
    assert kept(context, [b"1", b"2", b"3"]) == [b"1", b"2", b"3"]


async def test_0_keeps_all(context: RunContext) -> None:
    add_run(context, "r", 3)
    await UpdatePruning(replace(context, keep_update_rounds=0)).prune()
    assert kept(context, [b"1", b"2", b"3"]) == [b"1", b"2", b"3"]


async def test_what_a_killed_process_left_is_deleted_by_the_next(context: RunContext) -> None:
    add_run(context, "r", 3)
    context.artifacts.delete([digest(b"1")], frozenset)
    await UpdatePruning(context).prune()
    assert kept(context, [b"1", FISHER + b"1", b"2", b"3"]) == [b"3"]


async def test_a_store_that_is_away_is_tried_again_later(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(context, "r", 3)
    pruning = UpdatePruning(context)

    def away(*_: object) -> int:
        raise StoreUnavailable("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(ArtifactStore, "delete", away)
        await pruning.prune()
    assert kept(context, [b"1", b"2", b"3"]) == [b"1", b"2", b"3"]
    await pruning.prune()
    assert kept(context, [b"1", b"2", b"3"]) == [b"3"]


def test_what_is_about_to_be_named_is_not_deleted(context: RunContext) -> None:
    """A twin's update with the same bytes is found there; it is recorded a moment later."""
    sha256 = keep(context, b"1")
    with context.artifacts.naming([sha256]):
        assert context.artifacts.delete([sha256], frozenset) == 0
    assert kept(context, [b"1"]) == [b"1"]
    assert context.artifacts.delete([sha256], frozenset) == 1
    assert kept(context, [b"1"]) == []


def test_nobody_begins_to_name_while_it_is_looked_up_and_deleted(context: RunContext) -> None:
    sha256, order = keep(context, b"1"), list[str]()
    is_looking, go_on = threading.Event(), threading.Event()

    def find_needed() -> tuple[str, ...]:
        is_looking.set()
        assert go_on.wait(10)
        order.append("looked up")
        return ()

    def name() -> None:
        with context.artifacts.naming([sha256]):
            order.append("named")

    def name_another() -> None:
        with context.artifacts.naming(["0" * 64]):
            order.append("another")

    deleting = threading.Thread(target=lambda: context.artifacts.delete([sha256], find_needed))
    deleting.start()
    assert is_looking.wait(10)
    naming = threading.Thread(target=name)
    naming.start()
    naming.join(0.2)
    # Who brings other bytes does not wait.
    name_another()
    go_on.set()
    for thread in (deleting, naming):
        thread.join(10)
    assert order == ["another", "looked up", "named"]
    assert kept(context, [b"1"]) == []
