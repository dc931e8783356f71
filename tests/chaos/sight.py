"""Where a run is, read from the aggregator's database without touching it, and the instants at which to kill."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fednano.v1.run_pb2 import Participant, Round, Run

QUERY = """
SELECT run.state, coalesce(round.number, -1), coalesce(round.state, 0),
  (SELECT count(*) FROM clients WHERE run = run.run),
  (SELECT count(*) FROM participants WHERE run = run.run AND number = round.number AND adapter_sha256 != ''),
  (SELECT count(*) FROM participants WHERE run = run.run AND number = round.number AND state = :evaluated),
  run.event_count
FROM runs AS run LEFT JOIN rounds AS round ON round.run = run.run
ORDER BY round.number DESC LIMIT 1
"""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One run as its database has it, and how much of updates has arrived on the disk."""

    run_state: int
    number: int
    round_state: int
    client_count: int
    update_count: int
    evaluation_count: int
    event_count: int
    incoming_bytes: int

    @property
    def is_ended(self) -> bool:
        return self.run_state in (Run.STATE_SUCCEEDED, Run.STATE_FAILED, Run.STATE_CANCELLED)


def look(state: Path) -> Sight | None:
    """None while there is nothing to see: no database, no run, or one that is just being opened."""
    file = state / "aggregator.sqlite3"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
            row = connection.execute(QUERY, {"evaluated": Participant.STATE_EVALUATED}).fetchone()
    except sqlite3.Error:
        return None
    if row is None:
        return None
    return Sight(
        run_state=row[0],
        number=row[1],
        round_state=row[2],
        client_count=row[3],
        update_count=row[4],
        evaluation_count=row[5],
        event_count=row[6],
        incoming_bytes=_incoming_bytes(state),
    )


def _incoming_bytes(state: Path) -> int:
    """Of files that may vanish while they are counted."""
    total = 0
    for folder, _, names in os.walk(state / "incoming"):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    return total


class Phase(Enum):
    """An instant of a run's life. Those that last milliseconds are met by letting the aggregator run in slices."""

    WAITING = "waiting for clients"
    TRAINING = "training, before any upload"
    UPLOADING = "between two chunks of an upload"
    PARTLY_UPDATED = "with one update accepted"
    BEFORE_MERGE = "with all updates accepted, before the merge"
    MERGING = "while merging"
    MERGED = "right after the merge"
    EVALUATING = "with one evaluation recorded"
    BETWEEN_ROUNDS = "between two rounds"
    AFTER_LAST = "right after the last round"

    @property
    def is_short(self) -> bool:
        return self not in (Phase.WAITING, Phase.TRAINING, Phase.UPLOADING)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large the run is that is looked at."""

    clients: int
    rounds: int


def is_at(phase: Phase, sight: Sight, shape: Shape) -> bool:
    return _TESTS[phase](sight, shape)


def is_near(sight: Sight) -> bool:
    """Whether one of the short phases may come next."""
    uploads = sight.round_state == Round.STATE_TRAINING and (sight.incoming_bytes > 0 or sight.update_count > 0)
    return uploads or sight.round_state in (Round.STATE_MERGING, Round.STATE_EVALUATING)


def _trains(sight: Sight) -> bool:
    return sight.round_state == Round.STATE_TRAINING


_TESTS: dict[Phase, Callable[[Sight, Shape], bool]] = {
    Phase.WAITING: lambda s, _: s.run_state == Run.STATE_PENDING and s.client_count > 0,
    Phase.TRAINING: lambda s, _: _trains(s) and s.update_count == 0 and s.incoming_bytes == 0,
    Phase.UPLOADING: lambda s, _: _trains(s) and s.incoming_bytes > 0,
    Phase.PARTLY_UPDATED: lambda s, shape: _trains(s) and 0 < s.update_count < shape.clients,
    Phase.BEFORE_MERGE: lambda s, shape: _trains(s) and s.update_count == shape.clients,
    Phase.MERGING: lambda s, _: s.round_state == Round.STATE_MERGING,
    Phase.MERGED: lambda s, _: (
        s.number > 0 and s.evaluation_count == 0 and s.round_state in (Round.STATE_EVALUATING, Round.STATE_SUCCEEDED)
    ),
    Phase.EVALUATING: lambda s, shape: (
        s.round_state == Round.STATE_EVALUATING and 0 < s.evaluation_count < shape.clients
    ),
    Phase.BETWEEN_ROUNDS: lambda s, shape: s.round_state == Round.STATE_SUCCEEDED and s.number < shape.rounds,
    Phase.AFTER_LAST: lambda s, shape: s.round_state == Round.STATE_SUCCEEDED and s.number == shape.rounds,
}
