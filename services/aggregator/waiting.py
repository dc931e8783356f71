"""How a run waits: until what it waits for is there, its time is up, or it has ended; and what it says meanwhile.

A wait has its whole time again after a restart of the aggregator, for clients could not answer one that was away: a
restart never shortens what they get. Nothing else gives a wait more time.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import Connection

from fednano.names import RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.changes import wait_for
from services.aggregator.run_context import RunContext
from services.aggregator.store import clients, runs

# A wait looks at the clients' leases at least this often.
LONGEST_PAUSE_S = 1.0
# What a run waits for may change a thousand times a second; people read slower, and each change is a write.
WORDS_INTERVAL_S = 0.2
# Among a thousand updates a second a look takes milliseconds: it rests for some times as long as it took.
LOOK_REST = 3.0
LONGEST_REST_S = 0.05

WaitKey = tuple[int, int, str]


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a wait sees when it looks: whether it is over, and what to tell operators, such as "updates 2/5"."""

    is_over: bool
    words: str


Look = Callable[[Connection], Outlook]


def state_key(name: RoundName, attempt: int, state: "pb.Round.State.ValueType") -> WaitKey:
    """The key of the wait that a round's state is."""
    return name.number, attempt, pb.Round.State.Name(state)


def seconds(duration: Duration) -> float:
    return duration.ToMilliseconds() / 1000


class Waits:
    """The waits of one run. A key names one: its round, the attempt, and what for."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._deadlines_s: dict[WaitKey, float] = {}
        self._words_time_s = 0.0

    def is_begun(self, key: WaitKey) -> bool:
        return key in self._deadlines_s

    def begin(self, key: WaitKey, timeout_s: float) -> float:
        """When the wait ends, on the monotonic clock. One that goes on after a fault gets no more time."""
        return self._deadlines_s.setdefault(key, time.monotonic() + timeout_s)

    def forget(self) -> None:
        """Every wait that begins from now on has its whole time."""
        self._deadlines_s.clear()

    async def until(self, look: Look, deadline_s: float | None) -> None:
        """Returns once ``look`` says that it is over, the run has ended or it is ``deadline_s``, where one is set."""
        while True:
            ticket = self._context.changes.ticket(self._context.run)
            look_time_s = time.monotonic()
            left_s = LONGEST_PAUSE_S if deadline_s is None else deadline_s - time.monotonic()
            with self._context.store.transaction() as connection:
                has_changed = self._look_after_clients(connection)
                outlook = look(connection)
                is_over = outlook.is_over or left_s <= 0 or self._context.has_ended(connection)
                is_due = time.monotonic() - self._words_time_s >= WORDS_INTERVAL_S
                if not is_over and is_due and runs.set_waiting_for(connection, self._context.run, outlook.words):
                    has_changed, self._words_time_s = True, time.monotonic()
            if has_changed:
                self._context.changes.notify(self._context.run)
            if is_over:
                return
            await asyncio.sleep(min(LOOK_REST * (time.monotonic() - look_time_s), LONGEST_REST_S))
            await wait_for(ticket, min(left_s, LONGEST_PAUSE_S if is_due else WORDS_INTERVAL_S))

    def _look_after_clients(self, connection: Connection) -> bool:
        """Writes down heartbeats now and then, and loses clients whose lease ran out; True where it lost any."""
        run, leases = self._context.run, self._context.leases
        silent = leases.silent(run, clients.active_client_ids(connection, run)) if leases.is_look_due(run) else []
        if silent or leases.is_flush_due(run):
            leases.flush(connection, run)
        clients.lose_clients(connection, run, silent)
        return bool(silent)
