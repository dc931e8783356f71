"""One run in a real store with a real driver, and clients that are rows: what they would send is written at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aggregator_process import SHAPES
from safetensors.numpy import save
from sqlalchemy import Connection

from fednano.names import ClientName, RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.changes import Changes
from services.aggregator.leases import Leases
from services.aggregator.run_context import RunContext
from services.aggregator.run_driver import RunDriver
from services.aggregator.store import clients, participants, rounds, runs
from services.aggregator.store.database import Store

DEADLINE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class RunScene:
    """Run "r" and the context in which it is driven."""

    context: RunContext

    def create(self, config: pb.RunConfig) -> None:
        with self.context.store.transaction() as connection:
            runs.insert_run(connection, "r", "", config, "")

    def join(self, *ids: str) -> None:
        for client in ids:
            with self.context.store.transaction() as connection:
                clients.put_client(connection, name(client), display_name="", example_count=1, parameter_counts={})
        self.context.changes.notify("r")

    def change(self, action: Callable[[Connection], object]) -> None:
        with self.context.store.transaction() as connection:
            action(connection)
        self.context.changes.notify("r")

    def update(self, client: str, number: int = 1, value: float = 1.0) -> None:
        tensors = {key: np.full(shape, value, np.float32) for key, shape in SHAPES.items()}
        self.update_with(client, number, save(tensors))

    def update_with(self, client: str, number: int, content: bytes) -> None:
        sha256 = self.context.artifacts.put(content)
        self.change(
            lambda connection: participants.record_update(
                connection,
                RoundName(run="r", number=number),
                name(client),
                example_count=1,
                metrics={"train/loss": 1.0},
                adapter_sha256=sha256,
                fisher_sha256=sha256,
            )
        )

    def evaluate(self, client: str, number: int = 0) -> None:
        turn = RoundName(run="r", number=number)
        metrics = {"test/accuracy": 0.5}
        self.change(lambda connection: participants.record_evaluation(connection, turn, name(client), 1, metrics))

    @property
    def run(self) -> pb.Run:
        with self.context.store.transaction() as connection:
            return runs.load_run(connection, "r")

    def round(self, number: int = 1) -> pb.Round:
        with self.context.store.transaction() as connection:
            return rounds.load_round(connection, RoundName(run="r", number=number))

    def states(self, number: int = 1) -> dict[str, str]:
        """What became of each participant of a round."""
        parts = self.round(number).participants
        return {part.client[-1]: pb.Participant.State.Name(part.state).removeprefix("STATE_") for part in parts}

    @asynccontextmanager
    async def driven(self) -> AsyncIterator["asyncio.Task[None]"]:
        """A driver drives while the block runs; it is cancelled afterwards, as at the process's end."""
        task = asyncio.create_task(RunDriver(self.context).drive())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                await asyncio.sleep(0.01)

    async def until_round(self, number: int, state: "pb.Round.State.ValueType", attempt: int = 1) -> None:
        current = f"runs/r/rounds/{number}"
        await self.until(lambda: self.run.current_round == current)
        await self.until(lambda: (self.round(number).state, self.round(number).attempt) == (state, attempt))


def name(client: str) -> ClientName:
    return ClientName(run="r", client=client)


def open_scene(folder: Path, store: Store, artifacts: ArtifactStore, leases: Leases | None = None) -> RunScene:
    return RunScene(
        context=RunContext(
            run="r",
            state=folder,
            store=store,
            artifacts=artifacts,
            changes=Changes(),
            leases=leases or Leases(60.0),
        )
    )
