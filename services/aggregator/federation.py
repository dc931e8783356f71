"""What both servicers work with: the database, the artifacts, the drivers, and who waits for changes."""

import asyncio
from dataclasses import dataclass, field

from sqlalchemy import URL

from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.changes import Changes
from services.aggregator.leases import Leases
from services.aggregator.run_context import RunContext
from services.aggregator.run_driver import RunDriver
from services.aggregator.settings import AggregatorSettings
from services.aggregator.store import runs
from services.aggregator.store.database import Store


@dataclass(kw_only=True)
class Federation:
    """One aggregator's runs. All methods are for the event loop's thread."""

    settings: AggregatorSettings
    store: Store
    artifacts: ArtifactStore
    leases: Leases
    changes: Changes = field(default_factory=Changes)
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

    async def stop(self) -> None:
        """Ends the drivers; the database has all that they need to begin anew."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.store.close()


def open_federation(settings: AggregatorSettings) -> Federation:
    """Opens the state folder, made where it is absent."""
    settings.state.mkdir(parents=True, exist_ok=True)
    store = Store(settings.database or URL.create("sqlite", database=str(settings.state / "aggregator.sqlite3")))
    artifacts, leases = ArtifactStore(settings.state), Leases(settings.lease_s)
    return Federation(settings=settings, store=store, artifacts=artifacts, leases=leases)
