"""The events of a round of any size are small, but for those at which its state changes."""

import pytest

from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store import clients, participants, rounds, runs
from services.aggregator.store.database import Store
from services.aggregator.store.events import MAX_BYTES, append_event, events_after
from services.aggregator.store.rounds import SMALL_ROUND
from services.aggregator.store.situations import load_situation

ROUND = RoundName(run="a", number=1)


def name(number: int) -> ClientName:
    return ClientName(run="a", client=f"client-{number:04}")


def open_round(store: Store, client_count: int) -> None:
    with store.transaction() as connection:
        runs.insert_run(connection, "a", "", pb.RunConfig(), "")
        names = [name(number) for number in range(client_count)]
        for each in names:
            clients.put_client(connection, each, display_name="", example_count=1, parameter_counts={})
        chosen = [each.client for each in names]
        state = pb.Round.STATE_TRAINING
        rounds.open_round(connection, ROUND, state=state, clients=chosen, base_sha256="b" * 64, deadline_s=1.0)


def update(store: Store, number: int) -> pb.Round:
    """The round in the event that an update makes."""
    with store.transaction() as connection:
        participants.record_update(
            connection,
            ROUND,
            name(number),
            example_count=1,
            metrics={"train/loss": 0.5},
            adapter_sha256="a" * 64,
            fisher_sha256="",
        )
        rounds.announce_round(connection, ROUND, name(number))
        newest = runs.load_run(connection, "a").event_sequence
        return events_after(connection, "a", newest - 1)[-1].round


@pytest.mark.parametrize("client_count", [2, SMALL_ROUND])
def test_every_event_of_a_small_round_has_all_of_it(store: Store, client_count: int) -> None:
    open_round(store, client_count)
    turn = update(store, 0)
    assert (len(turn.participants), turn.update_count, turn.metrics["train/loss"]) == (client_count, 1, 0.5)


def test_an_update_of_a_large_round_tells_of_one_participant_and_the_count(store: Store) -> None:
    open_round(store, SMALL_ROUND + 1)
    update(store, 0)
    turn = update(store, 7)
    assert [part.client for part in turn.participants] == [str(name(7))]
    assert (turn.update_count, dict(turn.metrics)) == (2, {})
    with store.transaction() as connection:
        assert len(rounds.set_round_state(connection, ROUND, pb.Round.STATE_MERGING).participants) == SMALL_ROUND + 1


def test_a_page_of_large_rounds_ends_early_but_has_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    open_round(store, 20)
    with store.transaction() as connection:
        for number in (2, 3):
            turn, state = RoundName(run="a", number=number), pb.Round.STATE_TRAINING
            chosen = [name(0).client]
            rounds.open_round(connection, turn, state=state, clients=chosen, base_sha256="b" * 64, deadline_s=1.0)
        assert [turn.number for turn in rounds.list_rounds(connection, "a", limit=10)] == [1, 2, 3]
        monkeypatch.setattr(rounds, "MAX_PAGE_BYTES", 300)
        assert [turn.number for turn in rounds.list_rounds(connection, "a", limit=10)] == [1]
        assert [turn.number for turn in rounds.list_rounds(connection, "a", after=1, limit=10)] == [2, 3]


def test_one_batch_of_events_has_a_bounded_size_and_at_least_one(store: Store) -> None:
    with store.transaction() as connection:
        runs.insert_run(connection, "a", "", pb.RunConfig(), "")
        for _ in range(3):
            append_event(connection, "a", pb.Run(display_name="x" * MAX_BYTES))
        sequence, sizes = 0, []
        while batch := events_after(connection, "a", sequence):
            sequence = batch[-1].sequence
            sizes.append(len(batch))
    assert sizes == [2, 1, 1]


def test_a_situation_is_a_clients_part_in_the_newest_round(store: Store) -> None:
    with store.transaction() as connection:
        runs.insert_run(connection, "a", "", pb.RunConfig(), "")
        clients.put_client(connection, name(0), display_name="", example_count=1, parameter_counts={})
        before = load_situation(connection, name(0))
    assert (before.newest, before.part_state) == (None, None)
    with store.transaction() as connection:
        state = pb.Round.STATE_TRAINING
        rounds.open_round(
            connection, ROUND, state=state, clients=[name(0).client], base_sha256="b" * 64, deadline_s=1.0
        )
        after = load_situation(connection, name(0))
        assert after.newest == rounds.load_head(connection, ROUND)
    assert after.part_state == pb.Participant.STATE_SELECTED
    assert (after.client_state, after.run_state) == (pb.Client.STATE_ACTIVE, pb.Run.STATE_PENDING)
