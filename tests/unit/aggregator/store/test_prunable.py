"""What of old rounds may be deleted, over both databases."""

from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store import clients, participants, rounds, runs
from services.aggregator.store.database import Store
from services.aggregator.store.prunable import needed_sha256s, update_sha256s


def add_run(store: Store, run: str, rounds_sent: list[tuple[str, str]], gram: str = "") -> None:
    """One client's adapter and Fisher information by round; the merged adapter is named after the run."""
    client = ClientName(run=run, client="a")
    with store.transaction() as connection:
        runs.insert_run(connection, run, "", pb.RunConfig(round_count=3), "")
        clients.put_client(connection, client, display_name="", example_count=1, parameter_counts={})
        for number, (adapter, fisher) in enumerate(rounds_sent, 1):
            name = RoundName(run=run, number=number)
            state = pb.Round.STATE_TRAINING
            rounds.open_round(connection, name, state=state, clients=["a"], base_sha256=f"base-{run}", deadline_s=0.0)
            participants.record_update(
                connection,
                name,
                client,
                example_count=1,
                metrics={},
                adapter_sha256=adapter,
                fisher_sha256=fisher,
                gram_sha256=gram,
            )


def test_what_was_sent_is_told_by_rounds_and_empty_digests_are_none(store: Store) -> None:
    add_run(store, "r", [("a1", "f1"), ("a2", ""), ("a3", "f3")], gram="g")
    add_run(store, "other", [("o1", "p1")])
    with store.transaction() as connection:
        assert update_sha256s(connection, "r", 1, 2) == {"a1", "f1", "a2"}
        assert update_sha256s(connection, "r", 2, 9) == {"a2", "a3", "f3"}
        assert update_sha256s(connection, "nobody", 1, 9) == set()


def test_what_anything_else_names_is_needed(store: Store) -> None:
    add_run(store, "r", [("a1", "f1"), ("base-r", "g"), ("a2", "f2"), ("a1", "f3")], gram="g")
    add_run(store, "twin", [("f1", "o1"), ("a2", "f2")])
    with store.transaction() as connection:
        # a1 of a newer round, f1 as a twin's adapter, a base adapter, Gram matrices, and a twin's both.
        assert needed_sha256s(connection, "r", 1, 3) == {"a1", "f1", "base-r", "g", "a2", "f2"}
        # Of a window of old rounds nothing is needed for the rounds before it.
        assert needed_sha256s(connection, "r", 4, 4) == set()
        rounds.set_merged(connection, RoundName(run="twin", number=1), "f3")
        assert needed_sha256s(connection, "r", 4, 4) == {"f3"}
