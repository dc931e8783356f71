"""What everything that drives one run works with."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.changes import Changes
from services.aggregator.leases import Leases
from services.aggregator.store import runs
from services.aggregator.store.database import Store


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run's id, and the aggregator's stores, leases and tickets. ``state`` is the aggregator's folder.

    ``keep_update_rounds``: of how many of the newest rounds clients' updates stay; 0 keeps all.
    """

    run: str
    state: Path
    store: Store
    artifacts: ArtifactStore
    changes: Changes
    leases: Leases
    keep_update_rounds: int = 0

    def has_ended(self, connection: Connection) -> bool:
        return runs.run_state(connection, self.run) in runs.ENDED
