"""Opening the database: SQLite with a write-ahead log, one transaction a change."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite

from services.aggregator.store.schema import METADATA

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000")


class Store:
    """The database of one aggregator; all its calls come from the event loop's thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine: Engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _set_pragmas)
        METADATA.create_all(self._engine)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commits at the end of the block, or rolls everything back where it raises."""
        with self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()


def _set_pragmas(connection: Any, _record: Any) -> None:
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def upsert(
    connection: Connection,
    table: Table,
    key: Mapping[str, object],
    values: Mapping[str, object],
    initial: Mapping[str, object] | None = None,
) -> None:
    """Sets ``values`` in the row of that primary key, or adds it, then with the ``initial`` values too."""
    row = {**(initial or {}), **values, **key}
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))


def timestamp(time_s: float | None) -> Timestamp | None:
    """Unix seconds as the contract writes times; None stays unset."""
    if time_s is None:
        return None
    stamp = Timestamp()
    stamp.FromMicroseconds(round(time_s * 1e6))
    return stamp
