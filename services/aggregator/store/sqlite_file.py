"""Looking at a SQLite file before it is used: read-only, so that a damaged one keeps every byte it has."""

import sqlite3
from contextlib import closing
from pathlib import Path

from fednano.errors import StoreUnavailable
from services.aggregator.store.faults import corrupt

MAGIC = b"SQLite format 3\0"
IN_USE = "the database beside this file is in use"
MAX_FAULTS = 3


def refuse_damaged(file: Path, note: str) -> None:
    """Raises StoreRefused, naming the file, unless it is whole or was never there.

    ``note`` is what the last aggregator left in the claim. SQLite itself would take an empty or absent file for a new
    database, and drop the log beside it.
    """
    size_bytes = file.stat().st_size if file.exists() else 0
    log = file.with_name(f"{file.name}-wal")
    if size_bytes == 0:
        if note == IN_USE or (log.exists() and log.stat().st_size > 0):
            state = "is empty" if file.exists() else "is gone"
            claim = file.with_name(f"{file.name}.lock")
            raise corrupt(str(file), f"it {state}, but was in use; to begin anew without it, remove {claim} and {log}")
        return
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise corrupt(str(file), "it does not begin as a SQLite database does")
    _check_pages(file)


def _check_pages(file: Path) -> None:
    """Reads the whole file, with what the log beside it holds."""
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as connection:
            faults = [row[0] for row in connection.execute(f"PRAGMA integrity_check({MAX_FAULTS})")]
            faults += [f"{row[0]} breaks a reference" for row in connection.execute("PRAGMA foreign_key_check")]
    except sqlite3.OperationalError as error:
        raise StoreUnavailable(f"{file} cannot be read ({error})", database=str(file)) from error
    except sqlite3.DatabaseError as error:
        raise corrupt(str(file), str(error)) from error
    if faults != ["ok"]:
        raise corrupt(str(file), "; ".join(fault.replace("\n", " ") for fault in faults[:MAX_FAULTS]))
