"""The aggregator's database: SQLite or PostgreSQL, claimed by one aggregator, one transaction at a time."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import URL, Connection, Engine, Table
from sqlalchemy.dialects import postgresql, sqlite

from fednano.errors import StoreRefused, StoreUnavailable
from services.aggregator.disk_faults import disk_faults_named
from services.aggregator.store.claim import FileClaim, claim_session
from services.aggregator.store.engine import SQLITE, make_engine, parse_database_url, shown
from services.aggregator.store.faults import faults_named
from services.aggregator.store.sqlite_file import IN_USE, refuse_damaged
from services.aggregator.store.upgrade import upgrade

TURN_TIMEOUT_S = 15.0


class Store:
    """One aggregator's database. Any thread may begin a transaction; it waits until the one before has ended."""

    def __init__(self, url: str | URL) -> None:
        """Opens the database, made or upgraded where needed, and claims it for this process.

        Raises SettingsInvalid for a URL that cannot be used, StoreRefused where the database is damaged, newer than
        this version or in use by another aggregator, StoreUnavailable or StorageFull where trying again may help.
        """
        self._url = parse_database_url(url)
        self._where = shown(self._url)
        self._turn = threading.Lock()
        self._owner: int | None = None
        self._is_open = False
        # Why no transaction is begun any more; what was found broken is not written to again.
        self.damage: StoreRefused | None = None
        self._claim = self._claim_file()
        try:
            self._engine: Engine = make_engine(self._url, self._claim_connection)
            self._open()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commits at the end of the block, or rolls everything back where it raises.

        Raises StorageFull or StoreUnavailable where the same may succeed later. Where the connection is lost during the
        commit, the changes may be there or not: whoever tries again must find out, as every call of the contract does.
        """
        with self._taking_turn():
            if self.damage is not None:
                raise StoreUnavailable(self.damage.message, **self.damage.facts)
            try:
                with faults_named(self._where), self._engine.begin() as connection:
                    yield connection
            except StoreRefused as refusal:
                if not self._is_open:
                    raise
                self.damage = refusal
                raise StoreUnavailable(refusal.message, **refusal.facts) from refusal

    def close(self) -> None:
        """Gives the claim back. Closing again does nothing."""
        engine: Engine | None = getattr(self, "_engine", None)
        if engine is not None:
            engine.dispose()
        if self._claim is not None:
            self._claim.release()

    def _open(self) -> None:
        with self.transaction() as connection:
            upgrade(connection, self._where)
        if self._claim is not None:
            with disk_faults_named(Path(self._where)):
                self._claim.leave_note(IN_USE)
        self._is_open = True

    def _claim_file(self) -> FileClaim | None:
        """A SQLite database is claimed by a file beside it, and looked at before it is opened."""
        if self._url.drivername != SQLITE:
            return None
        assert self._url.database is not None
        file = Path(self._url.database)
        claim = FileClaim(file.with_name(f"{file.name}.lock"))
        with disk_faults_named(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            claim.take(str(file))
        try:
            with disk_faults_named(file):
                refuse_damaged(file, claim.note)
        except BaseException:
            claim.release()
            raise
        return claim

    def _claim_connection(self, connection: Any) -> None:
        if self._url.drivername != SQLITE:
            claim_session(connection, self._where, is_first=not self._is_open)

    @contextmanager
    def _taking_turn(self) -> Iterator[None]:
        assert self._owner != threading.get_ident(), "transactions do not nest"
        if not self._turn.acquire(timeout=TURN_TIMEOUT_S):
            raise StoreUnavailable(f"{self._where} was busy for {TURN_TIMEOUT_S:g} s: it is tried again")
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = None
            self._turn.release()


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
