"""When each client was last heard, kept in memory: a thousand heartbeats must not be a thousand writes to the disk.

The database learns of it every few seconds, for people to read; nothing is decided by what it says. After a restart
every client counts as heard at the start, for nobody can be lost for the time in which nobody could be called.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from fednano.names import ClientName
from services.aggregator.store import clients

FLUSH_INTERVAL_S = 5.0
LOOK_INTERVAL_S = 0.5
# After a longer time without a look this process was stopped or busy, and may have heard nobody.
PAUSE_S = 3.0


@dataclass
class _Heard:
    """One client's last sign of life, on the monotonic clock."""

    time_s: float
    step: int = 0
    is_written: bool = False


class Leases:
    """The leases of all clients of all runs. All methods are for the event loop's thread."""

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease_s = lease_s
        self._clock = clock
        self._heard: dict[str, dict[str, _Heard]] = {}
        # From when on this process could have heard a run's clients, when it last looked, and when it last wrote.
        self._since_s: dict[str, float] = {}
        self._looked_s: dict[str, float] = {}
        self._flushed_s: dict[str, float] = {}

    def hear(self, name: ClientName, step: int | None = None) -> None:
        """Notes a sign of life, and the local step that the client is at where it says so."""
        known = self._heard.setdefault(name.run, {}).setdefault(name.client, _Heard(self._clock()))
        known.time_s, known.is_written = self._clock(), False
        if step is not None:
            known.step = step

    def is_look_due(self, run: str) -> bool:
        return run not in self._looked_s or self._clock() - self._looked_s[run] >= LOOK_INTERVAL_S

    def silent(self, run: str, active: Iterable[str]) -> list[str]:
        """Those of the active clients whose lease has run out."""
        now_s = self._clock()
        if now_s - self._looked_s.get(run, now_s - PAUSE_S) >= PAUSE_S:
            self._since_s[run] = now_s
        self._looked_s[run] = now_s
        heard = self._heard.get(run, {})
        since_s = self._since_s[run]
        return [
            client
            for client in active
            if now_s - max(since_s, heard[client].time_s if client in heard else since_s) > self.lease_s
        ]

    def is_flush_due(self, run: str) -> bool:
        return self._clock() - self._flushed_s.setdefault(run, self._clock()) >= FLUSH_INTERVAL_S

    def flush(self, connection: Connection, run: str) -> None:
        """Writes what was heard since the last flush, in one statement."""
        now_s, wall_s = self._clock(), time.time()
        self._flushed_s[run] = now_s
        fresh = {client: heard for client, heard in self._heard.get(run, {}).items() if not heard.is_written}
        rows = {client: (wall_s - (now_s - heard.time_s), heard.step) for client, heard in fresh.items()}
        clients.set_heard(connection, run, rows)
        for heard in fresh.values():
            heard.is_written = True

    def forget(self, run: str) -> None:
        """Drops a run that has ended."""
        for kept in (self._heard, self._since_s, self._looked_s, self._flushed_s):
            kept.pop(run, None)
