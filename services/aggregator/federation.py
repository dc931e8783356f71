"""What both servicers work with: the database, the artifacts, the drivers, and who waits for changes."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL

from fednano.errors import SettingsInvalid
from services.aggregator.artifact_bucket import open_place
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.changes import Changes
from services.aggregator.disk_faults import disk_faults_named
from services.aggregator.expulsions import Expulsions
from services.aggregator.leases import Leases
from services.aggregator.run_context import RunContext
from services.aggregator.run_driver import RunDriver
from services.aggregator.settings import AggregatorSettings
from services.aggregator.store import runs
from services.aggregator.store.claim import FileClaim
from services.aggregator.store.database import Store

DAMAGE_POLL_S = 1.0


@dataclass(kw_only=True)
class Federation:
    """One aggregator's runs. All methods are for the event loop's thread."""

    settings: AggregatorSettings
    claim: FileClaim
    store: Store
    artifacts: ArtifactStore
    leases: Leases
    changes: Changes = field(default_factory=Changes)
    expulsions: Expulsions = field(default_factory=Expulsions)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def drive(self, run: str) -> None:
        """Starts the run's driver unless it has one."""
        if run not in self._tasks:
            context = RunContext(
                run=run,
                state=self.settings.state,
                store=self.store,
                artifacts=self.artifacts,
                changes=self.changes,
                leases=self.leases,
                keep_update_rounds=self.settings.keep_update_rounds,
            )
            task = asyncio.create_task(RunDriver(context).drive(), name=f"driver of {run}")
            task.add_done_callback(lambda _: self._tasks.pop(run, None))
            self._tasks[run] = task

    def drive_unended(self) -> None:
        """After a start: every run that has not ended goes on where the database says it is."""
        with self.store.transaction() as connection:
            unended = runs.unended_runs(connection)
        for run in unended:
            self.drive(run)

    async def until_damaged(self) -> None:
        """Raises StoreRefused once the database was found damaged; without end otherwise, for it is a watch."""
        # Any thread may find the damage, so there is no event of this loop to wait for.
        while self.store.damage is None:  # noqa: ASYNC110
            await asyncio.sleep(DAMAGE_POLL_S)
        raise self.store.damage

    async def stop(self) -> None:
        """Ends the drivers; the database has all that they need to begin anew."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.store.close()
        self.claim.release()


def open_federation(settings: AggregatorSettings) -> Federation:
    """Opens the state folder, made where it is absent, the database and the place of the artifacts.

    Raises SettingsInvalid where it can be no folder, StoreRefused where another aggregator uses one of them, and what
    ``Store`` and ``open_place`` raise.
    """
    state = settings.state
    claim = FileClaim(state / "aggregator.lock")
    with disk_faults_named(state):
        _make(state)
        claim.take(f"state folder {state}")
    try:
        place = open_place(settings.artifacts, state / "cache") if settings.artifacts else None
        artifacts = ArtifactStore(state, place)
        store = Store(settings.database or URL.create("sqlite", database=str(state / "aggregator.sqlite3")))
    except BaseException:
        claim.release()
        raise
    return Federation(settings=settings, claim=claim, store=store, artifacts=artifacts, leases=Leases(settings.lease_s))


def _make(state: Path) -> None:
    # What clients sent lies there: for nobody else on this machine.
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise SettingsInvalid(f"--state: {state} can be no folder: {error.strerror}") from None
