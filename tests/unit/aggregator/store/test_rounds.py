"""Clients, rounds and participants, over both databases."""

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from fednano.errors import ClientEvicted, ClientNotSelected, ResourceNotFound
from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store import clients, participants, rounds, runs
from services.aggregator.store.database import Store
from services.aggregator.store.standings import training_standing

NAMES = ["client-1", "client-10", "client-2"]
ROUND = RoundName(run="a", number=1)


def client_name(client: str) -> ClientName:
    return ClientName(run="a", client=client)


def join(connection: Connection, client: str, example_count: int = 10) -> pb.Client:
    return clients.put_client(
        connection,
        client_name(client),
        display_name=client,
        example_count=example_count,
        parameter_counts={"edge": 1 << 40},
    )


@pytest.fixture
def training(store: Store) -> Store:
    """A run with three clients and a round that they train in."""
    with store.transaction() as connection:
        runs.insert_run(connection, "a", "A", pb.RunConfig(round_count=3), "")
        for client in reversed(NAMES):
            join(connection, client)
        open_round(connection, ROUND)
    return store


def open_round(connection: Connection, name: RoundName) -> pb.Round:
    state = pb.Round.STATE_TRAINING
    return rounds.open_round(
        connection, name, state=state, clients=NAMES[:2], base_sha256="b" * 64, deadline_s=1234567890.123456
    )


def update(connection: Connection, client: str, loss: float = 1.0, example_count: int = 10) -> None:
    participants.record_update(
        connection,
        ROUND,
        client_name(client),
        example_count=example_count,
        metrics={"train/loss": loss, "bytes/adapters": 100.0},
        adapter_sha256="a" * 64,
        fisher_sha256="f" * 64,
    )


def test_clients_are_listed_by_name_page_by_page(training: Store) -> None:
    with training.transaction() as connection:
        assert [client.display_name for client in clients.list_clients(connection, "a")] == NAMES
        assert [c.display_name for c in clients.list_clients(connection, "a", after="client-1", limit=1)] == NAMES[1:2]
        assert clients.active_client_ids(connection, "a") == NAMES


def test_a_client_that_joins_again_keeps_its_name_and_says_anew_what_it_has(training: Store) -> None:
    with training.transaction() as connection:
        before = clients.load_client(connection, client_name("client-1"))
        clients.leave_run(connection, client_name("client-1"))
        after = join(connection, "client-1", example_count=1 << 40)
    assert (after.name, after.join_time) == (before.name, before.join_time)
    assert (after.state, after.example_count) == (pb.Client.STATE_ACTIVE, 1 << 40)


def test_an_unknown_client_is_named(training: Store) -> None:
    with pytest.raises(ResourceNotFound, match="runs/a/clients/absent"), training.transaction() as connection:
        clients.load_client(connection, client_name("absent"))


def test_a_lost_client_is_active_again_once_it_is_heard(training: Store) -> None:
    name = client_name("client-1")
    with training.transaction() as connection:
        clients.lose_clients(connection, "a", ["client-1"])
        assert clients.active_client_ids(connection, "a") == NAMES[1:]
        clients.set_client_state(connection, name, pb.Client.STATE_ACTIVE)
        assert clients.active_client_ids(connection, "a") == NAMES
        clients.set_heard(connection, "a", {"client-1": (2e9, 7)})
        heard = clients.load_client(connection, name)
    assert (heard.state, heard.step, heard.last_heartbeat_time.seconds) == (pb.Client.STATE_ACTIVE, 7, 2_000_000_000)


def test_an_evicted_client_stays_out(training: Store) -> None:
    name = client_name("client-1")
    with training.transaction() as connection:
        clients.set_client_state(connection, name, pb.Client.STATE_EVICTED)
        clients.leave_run(connection, name)
        assert clients.client_state(connection, name) == pb.Client.STATE_EVICTED
    with pytest.raises(ClientEvicted), training.transaction() as connection:
        clients.check_not_evicted(connection, name)


def test_a_round_has_the_selected_clients_by_name(training: Store) -> None:
    with training.transaction() as connection:
        opened = rounds.load_round(connection, ROUND)
        run = runs.load_run(connection, "a")
    assert [part.client for part in opened.participants] == [str(client_name(client)) for client in NAMES[:2]]
    assert {part.state for part in opened.participants} == {pb.Participant.STATE_SELECTED}
    assert (opened.base_adapter_sha256, run.current_round) == ("b" * 64, "runs/a/rounds/1")


def test_a_round_is_opened_once(training: Store) -> None:
    with pytest.raises(IntegrityError), training.transaction() as connection:
        open_round(connection, ROUND)


def test_a_participant_must_have_joined(training: Store) -> None:
    with pytest.raises(IntegrityError), training.transaction() as connection:
        participants.insert_participants(connection, ROUND, ["absent"])


def test_rounds_are_listed_oldest_first_page_by_page(training: Store) -> None:
    with training.transaction() as connection:
        for number in range(2, 13):
            open_round(connection, RoundName(run="a", number=number))
        assert [each.number for each in rounds.list_rounds(connection, "a")] == list(range(1, 13))
        assert [each.number for each in rounds.list_rounds(connection, "a", after=2, limit=3)] == [3, 4, 5]
        newest = rounds.newest_round(connection, "a")
        assert newest is not None
        assert newest.name.number == 12


def test_an_update_is_recorded_with_its_digests_and_metrics(training: Store) -> None:
    with training.transaction() as connection:
        update(connection, "client-1", loss=0.1 + 0.2)
    with training.transaction() as connection:
        part = participants.load_participation(connection, ROUND, client_name("client-1"))
        assert participants.update_count(connection, ROUND) == 1
        standing = training_standing(connection, ROUND)
    assert (part.adapter_sha256, part.fisher_sha256) == ("a" * 64, "f" * 64)
    assert part.metrics == {"train/loss": 0.1 + 0.2, "bytes/adapters": 100.0}
    assert (standing.answered, standing.active) == (1, 1)


def test_a_rounds_metrics_are_sums_of_bytes_and_means_by_examples(training: Store) -> None:
    with training.transaction() as connection:
        update(connection, "client-1", loss=1.0, example_count=30)
        update(connection, "client-10", loss=2.0, example_count=10)
        metrics = rounds.load_round(connection, ROUND).metrics
    assert metrics == {"train/loss": 1.25, "bytes/adapters": 200.0}


def test_a_refusal_is_kept_until_an_update_is_accepted(training: Store) -> None:
    name = client_name("client-1")
    with training.transaction() as connection:
        assert participants.record_refusal(connection, ROUND, name, "not finite")
        assert clients.load_client(connection, name).refusal == "not finite"
        update(connection, "client-1")
        assert clients.load_client(connection, name).refusal == ""


def test_the_same_evaluation_again_changes_nothing(training: Store) -> None:
    name = client_name("client-1")
    with training.transaction() as connection:
        assert participants.record_evaluation(connection, ROUND, name, 4, {"test/accuracy": 0.5})
        assert not participants.record_evaluation(connection, ROUND, name, 4, {"test/accuracy": 0.5})


def test_a_client_that_was_not_selected_has_no_part(training: Store) -> None:
    with pytest.raises(ClientNotSelected), training.transaction() as connection:
        participants.load_participation(connection, ROUND, client_name("client-2"))


def test_a_second_attempt_keeps_the_updates_and_replaces_the_silent(training: Store) -> None:
    with training.transaction() as connection:
        update(connection, "client-1")
        again = rounds.retry_round(connection, ROUND, ["client-2"], deadline_s=2e9)
        assert rounds.load_head(connection, ROUND).deadline_s == 2e9
    states = {part.client.rpartition("/")[2]: part.state for part in again.participants}
    assert states == {
        "client-1": pb.Participant.STATE_UPDATED,
        "client-10": pb.Participant.STATE_REPLACED,
        "client-2": pb.Participant.STATE_SELECTED,
    }


def test_a_merged_round_keeps_its_digest_and_what_was_measured(training: Store) -> None:
    with training.transaction() as connection:
        update(connection, "client-1")
        participants.record_merge_metrics(connection, ROUND, {client_name("client-1"): {"merge/share": 1.0}})
        rounds.set_merged(connection, ROUND, "c" * 64, {"merge/distance": 0.25})
        rounds.set_round_state(connection, ROUND, pb.Round.STATE_SUCCEEDED)
        part = participants.load_participation(connection, ROUND, client_name("client-1"))
        assert part.merge_metrics == {"merge/share": 1.0}
        assert rounds.newest_merged_sha256(connection, "a") == "c" * 64
        assert rounds.is_global_adapter(connection, "a", "b" * 64)
        assert not rounds.is_global_adapter(connection, "a", "e" * 64)
