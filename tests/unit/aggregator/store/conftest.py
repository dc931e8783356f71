"""A database of each kind for every test of the contract."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql_server import PostgresqlServer, binaries

from services.aggregator.store.database import Store


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed: there is no initdb on this machine")
    server = PostgresqlServer(programs)
    try:
        server.start()
        # Made once by the migrations; each test's database is a copy.
        Store(server.create_database("migrated")).close()
        yield server
        server.stop()
    finally:
        server.remove()


@pytest.fixture(scope="session")
def database_numbers() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path, database_numbers: Iterator[int]) -> str:
    """Of a database without any rows; each test runs over both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fednano.sqlite3'}"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.create_database(f"test-{next(database_numbers)}", template="migrated")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store(database_url)
    yield opened
    opened.close()
