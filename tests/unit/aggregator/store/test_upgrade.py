"""Migrations: they make the tables that the code uses, and lead older databases there."""

import shutil
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, MetaData, String, Table, inspect, text
from sqlalchemy.exc import DBAPIError

from fednano.errors import StoreRefused
from fednano.v1 import run_pb2 as pb
from services.aggregator.store import runs
from services.aggregator.store.database import Store
from services.aggregator.store.schema import METADATA
from services.aggregator.store.upgrade import MIGRATIONS, upgrade

NEXT = '''
"""The revision after the newest: {words}"""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{newest}"


def upgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("colour", sa.String, nullable=False, server_default="blue"))
    {words}
'''


def newer_migrations(folder: Path, words: str = "") -> Path:
    newest = sorted(file.name for file in (MIGRATIONS / "versions").glob("r*.py"))[-1][1:5]
    copy = folder / "migrations"
    shutil.copytree(MIGRATIONS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "versions" / "r9999_next.py").write_text(NEXT.format(newest=newest, words=words))
    return copy


def test_the_migrations_make_the_tables_of_the_schema(store: Store) -> None:
    with store.transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_a_column_that_no_migration_adds_is_noticed(store: Store) -> None:
    changed = MetaData()
    for table in METADATA.tables.values():
        table.to_metadata(changed)
    Table("runs", changed, Column("colour", String), extend_existing=True)
    with store.transaction() as connection:
        assert len(compare_metadata(MigrationContext.configure(connection), changed)) == 1


def test_an_older_database_is_upgraded_and_keeps_its_rows(store: Store, tmp_path: Path) -> None:
    with store.transaction() as connection:
        runs.insert_run(connection, "a", "Kept", pb.RunConfig(), "")
        upgrade(connection, "test", newer_migrations(tmp_path))
    with store.transaction() as connection:
        assert connection.execute(text("SELECT display_name, colour FROM runs")).all() == [("Kept", "blue")]


def test_an_upgrade_that_fails_changes_nothing(store: Store, tmp_path: Path) -> None:
    def fail() -> None:
        with store.transaction() as connection:
            upgrade(connection, "test", newer_migrations(tmp_path, 'op.execute("INSERT INTO absent VALUES (1)")'))

    with pytest.raises(DBAPIError, match="absent"):
        fail()
    with store.transaction() as connection:
        assert "colour" not in [column["name"] for column in inspect(connection).get_columns("runs")]


def test_a_newer_database_is_refused_and_left_as_it_is(store: Store, database_url: str, tmp_path: Path) -> None:
    with store.transaction() as connection:
        upgrade(connection, "test", newer_migrations(tmp_path))
    store.close()
    for _ in range(2):
        with pytest.raises(StoreRefused, match=r"has revision 9999, but this version knows .* a newer FedNano"):
            Store(database_url)


def test_tables_without_a_revision_are_refused(store: Store, database_url: str) -> None:
    with store.transaction() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    store.close()
    with pytest.raises(StoreRefused, match="tables but no revision"):
        Store(database_url)
