"""One aggregator per state: a claim that the operating system or the database takes back when its holder dies."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Any

from fednano.errors import StoreRefused, StoreUnavailable

# How long a start waits for the claim of a process that is just ending.
PATIENCE_S = 3.0
RETRY_S = 0.1
# Any constant: PostgreSQL keeps advisory locks apart by database.
LOCK_KEY = 0x0FED_4A40
MAX_NOTE_BYTES = 1000
HOLDER = """
SELECT a.application_name, a.pid, coalesce(host(a.client_addr), 'the same machine')
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.objid = %s AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class FileClaim:
    """A locked file beside what it stands for. Its words say who holds it, and whether it was ever in use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self.note = ""

    def take(self, what: str) -> None:
        """Raises StoreRefused, naming the process that uses ``what``, where that does not end within seconds."""
        # Not inherited by children: a lock lives as long as any descriptor of it.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        is_ours = _wait_for_lock(descriptor)
        holder, _, note = os.pread(descriptor, MAX_NOTE_BYTES, 0).decode(errors="replace").partition("\n")
        if not is_ours:
            os.close(descriptor)
            raise in_use(what, holder or "another process", str(self._path))
        self._descriptor, self.note = descriptor, note.strip()
        self._write()

    def leave_note(self, note: str) -> None:
        """Keeps one line for whoever takes the claim next."""
        self.note = note
        self._write()

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self) -> None:
        assert self._descriptor is not None
        text = f"process {os.getpid()} on {socket.gethostname()}\n{self.note}\n".encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))
        os.fsync(self._descriptor)


def claim_session(connection: Any, where: str, *, is_first: bool) -> None:
    """Makes a PostgreSQL session the one that may work on its database, for as long as it lives.

    The session that works is the one that holds the claim, so no transaction runs without it. Raises StoreRefused at
    the first session, and StoreUnavailable at a later one: then the lost session may still be there for some seconds.
    """
    until_s = time.monotonic() + (PATIENCE_S if is_first else 0.0)
    with connection.cursor() as cursor:
        while not cursor.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchone()[0]:
            if time.monotonic() >= until_s:
                row = cursor.execute(HOLDER, (LOCK_KEY,)).fetchone()
                holder = f"{row[0]} (server process {row[1]}, from {row[2]})" if row else "another session"
                connection.rollback()
                if is_first:
                    raise in_use(where, holder, "an advisory lock")
                raise StoreUnavailable(f"{where} is claimed by {holder}: it is tried again", database=where)
            time.sleep(RETRY_S)
    connection.commit()


def in_use(what: str, holder: str, lock: str) -> StoreRefused:
    return StoreRefused(
        f"{what} is in use by {holder}, which holds {lock}: stop that aggregator first, or give this one a state of "
        "its own (--state, --database)",
        holder=holder,
    )


def _wait_for_lock(descriptor: int) -> bool:
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                return False
            time.sleep(RETRY_S)
        else:
            return True
