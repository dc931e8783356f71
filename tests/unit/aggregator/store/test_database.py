"""What a store promises, over both databases."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from postgresql_server import PostgresqlServer
from sqlalchemy import Connection, func, insert, inspect, select
from sqlalchemy.exc import IntegrityError

from fednano.errors import SettingsInvalid, StoreRefused, StoreUnavailable
from fednano.v1 import run_pb2 as pb
from services.aggregator.store import runs
from services.aggregator.store.database import Store, upsert
from services.aggregator.store.schema import CLIENTS, EVENTS, RUNS

HOLD = """
import sys, time
from services.aggregator.store.database import Store
store = Store(sys.argv[1])
print("open", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(database_url: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the database open."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, database_url], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def add_run(connection: Connection, run: str) -> None:
    runs.insert_run(connection, run, "Test", pb.RunConfig(round_count=1), "")


def count_runs(store: Store) -> int:
    with store.transaction() as connection:
        return connection.execute(select(func.count()).select_from(RUNS)).scalar_one()


def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    def add_twice() -> None:
        with store.transaction() as connection:
            add_run(connection, "a")
            add_run(connection, "a")

    with pytest.raises(IntegrityError):
        add_twice()
    assert count_runs(store) == 0


def test_a_row_that_refers_to_nothing_is_refused(store: Store) -> None:
    with pytest.raises(IntegrityError), store.transaction() as connection:
        connection.execute(insert(EVENTS).values(run="absent", sequence=1, event=b""))


def test_an_errors_words_hold_no_values_of_rows(store: Store) -> None:
    with pytest.raises(IntegrityError) as refusal, store.transaction() as connection:
        connection.execute(insert(EVENTS).values(run="absent", sequence=1, event=b"secret"))
    assert "secret" not in str(refusal.value)


def test_what_was_committed_is_there_after_opening_again(store: Store, database_url: str) -> None:
    with store.transaction() as connection:
        add_run(connection, "a")
    store.close()
    again = Store(database_url)
    assert count_runs(again) == 1
    again.close()


def test_upsert_adds_a_row_once_and_then_changes_only_the_values(store: Store) -> None:
    said = {"display_name": "", "state": 1, "example_count": 1, "heartbeat_time_s": 1.0, "parameter_counts": {}}
    with store.transaction() as connection:
        add_run(connection, "a")
        upsert(connection, CLIENTS, {"run": "a", "client": "b"}, said, initial={"join_time_s": 1.0})
        upsert(connection, CLIENTS, {"run": "a", "client": "b"}, {**said, "state": 2}, initial={"join_time_s": 2.0})
        rows = connection.execute(select(CLIENTS.c.state, CLIENTS.c.join_time_s)).all()
    assert [tuple(row) for row in rows] == [(2, 1.0)]


def test_threads_that_read_and_write_lose_no_change(store: Store) -> None:
    with store.transaction() as connection:
        add_run(connection, "a")

    def count_up() -> None:
        for _ in range(20):
            with store.transaction() as connection:
                before = connection.execute(select(RUNS.c.event_count)).scalar_one()
                connection.execute(RUNS.update().values(event_count=before + 1))

    threads = [threading.Thread(target=count_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    with store.transaction() as connection:
        assert connection.execute(select(RUNS.c.event_count)).scalar_one() == 1 + 8 * 20


def test_a_transaction_within_a_transaction_is_a_bug(store: Store) -> None:
    with store.transaction(), pytest.raises(AssertionError, match="nest"), store.transaction():
        pass


def test_names_sort_by_their_bytes(store: Store) -> None:
    names = ["client-10", "client-2", "Client-3", "client_1", "zoë", "z"]
    with store.transaction() as connection:
        for name in names:
            add_run(connection, name)
        assert list(connection.execute(select(RUNS.c.run).order_by(RUNS.c.run)).scalars()) == sorted(names)


def test_counts_may_be_large(store: Store) -> None:
    with store.transaction() as connection:
        add_run(connection, "a")
        connection.execute(RUNS.update().values(event_count=1 << 40))
        assert connection.execute(select(RUNS.c.event_count)).scalar_one() == 1 << 40


def test_a_second_aggregator_is_refused_with_the_holders_name(
    database_url: str, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(StoreRefused, match=rf"{holder.pid} on .*stop that aggregator first"):
        Store(database_url)


def test_the_claim_of_a_killed_aggregator_is_free_again(database_url: str, holder: "subprocess.Popen[str]") -> None:
    holder.kill()
    Store(database_url).close()


def test_every_url_but_a_databases_is_refused_without_saying_its_password() -> None:
    for url in ["", "nonsense secret", "mysql://user:secret@host/name", "sqlite://", "sqlite:///:memory:"]:
        with pytest.raises(SettingsInvalid, match="--database") as refusal:
            Store(url)
        assert "secret" not in refusal.value.message


def test_an_unreachable_database_is_named_without_its_password() -> None:
    with pytest.raises(StoreUnavailable, match=r"user:\*\*\*@127\.0\.0\.1:1/name") as fault:
        Store("postgresql+psycopg://user:secret@127.0.0.1:1/name")
    assert "secret" not in fault.value.message


def test_an_absent_database_is_refused(postgresql: PostgresqlServer) -> None:
    with pytest.raises(StoreRefused, match=r'database "absent" does not exist'):
        Store(postgresql.url("absent"))


def test_tables_are_made_by_the_migrations(store: Store) -> None:
    with store.transaction() as connection:
        assert set(inspect(connection).get_table_names()) >= {"runs", "events", "alembic_version"}
