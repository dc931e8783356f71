"""What a driver's error means: the disk is full, the database is out of reach, or the database is broken."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from fednano.errors import FednanoError, StorageFull, StoreRefused, StoreUnavailable

# Of each SQLite error code only the low byte says the kind.
SQLITE_KIND = 0xFF
SQLITE_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
SQLITE_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}
# SQLSTATE classes and codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
DISK_FULL = "53100"
BROKEN = ("XX001", "XX002")
# Connection lost; too many connections; shut down or out of time; locked; rolled back for another; file trouble.
PASSING = ("08", "53", "57", "55P03", "25P03", "25P04", "40", "58")
# Wrong password or user; no such database; not allowed.
REFUSING = ("28", "3D000", "42501")


@contextmanager
def faults_named(where: str) -> Iterator[None]:
    """Turns what the driver says of disk, network and file into errors of ours; ``where`` is the database.

    Raises StorageFull and StoreUnavailable, which may be tried again, and StoreRefused, which may not. Errors that only
    a bug makes pass unchanged.
    """
    try:
        yield
    except PoolTimeout:
        raise StoreUnavailable(f"{where} has no free connection: it is tried again", database=where) from None
    except DBAPIError as error:
        fault = fault_of(error, where)
        if fault is None:
            raise
        raise fault from error


def fault_of(error: DBAPIError, where: str) -> FednanoError | None:
    """None where the error says nothing about the database's state."""
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_fault(error.orig, where)
    return _postgresql_fault(error, where)


def corrupt(where: str, detail: str) -> StoreRefused:
    return StoreRefused(
        f"{where} is damaged ({detail}) and was left as it is: stop the aggregator, keep a copy of the damaged "
        "database, restore the newest backup in its place, then start again",
        database=where,
    )


def _sqlite_fault(error: sqlite3.Error, where: str) -> FednanoError | None:
    kind = getattr(error, "sqlite_errorcode", 0) & SQLITE_KIND
    if kind == sqlite3.SQLITE_FULL:
        return _full(where)
    if kind in SQLITE_BROKEN:
        return corrupt(where, str(error))
    return _unavailable(where, str(error)) if kind in SQLITE_PASSING else None


def _postgresql_fault(error: DBAPIError, where: str) -> FednanoError | None:
    state = getattr(error.orig, "sqlstate", None) or ""
    words = str(error.orig).strip().partition("\n")[0]
    if state == DISK_FULL:
        return _full(where)
    if state in BROKEN:
        return corrupt(where, words)
    if state.startswith(REFUSING):
        return _refused(where, words)
    if state.startswith(PASSING):
        return _unavailable(where, words)
    if state:
        return None
    return _connection_fault(error, where, words)


def _connection_fault(error: DBAPIError, where: str, words: str) -> FednanoError | None:
    """Of a failed connection the driver passes on the server's words alone."""
    if any(said in words for said in ("authentication failed", "no pg_hba.conf", "does not exist", "no password")):
        return _refused(where, words)
    is_lost = error.connection_invalidated or type(error.orig).__name__ in ("OperationalError", "ConnectionTimeout")
    return _unavailable(where, words) if is_lost else None


def _full(where: str) -> StorageFull:
    return StorageFull(f"no space left for {where}: free some; nothing was lost, it is tried again", database=where)


def _unavailable(where: str, words: str) -> StoreUnavailable:
    return StoreUnavailable(f"{where} cannot be used now ({words}): it is tried again", database=where)


def _refused(where: str, words: str) -> StoreRefused:
    return StoreRefused(f"{where} lets the aggregator not in ({words}): check --database", database=where)
