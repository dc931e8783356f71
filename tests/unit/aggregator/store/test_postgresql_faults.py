"""A PostgreSQL server that restarts, ends sessions, is slow or full."""

from collections.abc import Iterator

import psycopg
import pytest
from postgresql_server import PostgresqlServer
from sqlalchemy import text

from fednano.errors import StorageFull, StoreUnavailable
from services.aggregator.store.claim import LOCK_KEY
from services.aggregator.store.database import Store


@pytest.fixture
def url(postgresql: PostgresqlServer, database_numbers: Iterator[int]) -> str:
    return postgresql.create_database(f"faults-{next(database_numbers)}")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store(url)
    yield opened
    opened.close()


def ask(store: Store, question: str = "SELECT count(*) FROM runs") -> None:
    with store.transaction() as connection:
        connection.execute(text(question))


def test_a_restarted_server_is_reached_again(store: Store, postgresql: PostgresqlServer) -> None:
    ask(store)
    postgresql.stop()
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="cannot be used now"):
                ask(store)
    finally:
        postgresql.start()
    ask(store)


def test_a_server_that_stops_within_a_transaction_is_unavailable(store: Store, postgresql: PostgresqlServer) -> None:
    def stop_within() -> None:
        with store.transaction() as connection:
            connection.execute(text("UPDATE runs SET state = 1"))
            postgresql.stop()
            connection.execute(text("UPDATE runs SET state = 2"))

    try:
        with pytest.raises(StoreUnavailable):
            stop_within()
    finally:
        postgresql.start()
    ask(store)


def test_an_ended_session_is_replaced_and_claims_again(store: Store, postgresql: PostgresqlServer) -> None:
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'fednano-aggregator%'"
    postgresql.execute(end)
    ask(store)
    ask(store, "SELECT 1 / count(*) FROM pg_locks WHERE locktype = 'advisory'")


def test_a_store_that_lost_its_claim_to_another_does_not_work_on(
    store: Store, url: str, postgresql: PostgresqlServer
) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), application_name="another") as other:
        postgresql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'fednano-aggregator%'"
        )
        other.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        with pytest.raises(StoreUnavailable, match="is claimed by another"):
            ask(store)
    ask(store)


def test_a_statement_that_takes_too_long_is_unavailable(url: str) -> None:
    store = Store(f"{url}&options=-c statement_timeout=100")
    with pytest.raises(StoreUnavailable, match="statement timeout"):
        ask(store, "SELECT pg_sleep(5)")
    ask(store)
    store.close()


def test_a_full_disk_is_said(store: Store) -> None:
    with pytest.raises(StorageFull):
        ask(store, "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$")
    ask(store)


def test_damage_found_by_the_server_ends_all_work(store: Store) -> None:
    with pytest.raises(StoreUnavailable, match="restore the newest backup"):
        ask(store, "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'data_corrupted'; END $$")
    assert store.damage is not None
    with pytest.raises(StoreUnavailable, match="restore the newest backup"):
        ask(store)


def test_commits_wait_for_the_disk_and_no_wait_is_endless(store: Store) -> None:
    with store.transaction() as connection:
        settings = [
            connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("synchronous_commit", "statement_timeout", "lock_timeout")
        ]
    assert settings == ["on", "15s", "5s"]
