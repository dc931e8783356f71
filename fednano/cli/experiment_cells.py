"""Runs the cells of an experiment on real services: an LLM server and an aggregator for all, clients for each."""

import asyncio
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.cells import POOLED_CLIENT, Cell, run_config
from experiments.examples import make_examples
from experiments.outcomes import Outcome, load_outcome, save_outcome
from fednano.cli.experiment_progress import ExperimentProgress
from fednano.cli.local_federation import (
    PLAINTEXT,
    Addresses,
    ClientPart,
    clients_serving,
    get_model,
    metered,
    services_serving,
    start_client,
    start_services,
    supervised,
)
from fednano.cli.operator import Operator
from fednano.cli.presets import DEFAULT, PRESETS
from fednano.cli.processes import Processes
from fednano.cli.report import FinishedRun, Report, make_report
from fednano.errors import PartFailed, ResourceNotFound
from fednano.names import RunName
from fednano.rpc.channels import open_channel
from fednano.v1 import run_pb2, run_service_pb2, split_service_pb2

ROUND_TIMEOUT_S = 3600
SILENCE_S = 2.0 * ROUND_TIMEOUT_S + 60.0
# From the run's end to a client's: its next poll tells it.
CLIENT_END_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Places:
    """``cells`` keeps outcomes; ``work`` holds examples, logs and the services' state."""

    cells: Path
    work: Path


def finished_cells(cells: Sequence[Cell], places: Places) -> dict[Cell, Outcome]:
    """The outcomes of those cells that have one."""
    found = {cell: load_outcome(places.cells, cell) for cell in cells}
    return {cell: outcome for cell, outcome in found.items() if outcome is not None}


def run_cells(cells: Sequence[Cell], places: Places, progress: ExperimentProgress) -> dict[Cell, Outcome]:
    """The outcomes of all cells; those without one are run first. No process outlives the call.

    A run that was cut short goes on where it was. Raises PartFailed where a part or a run fails.
    """
    finished = finished_cells(cells, places)
    pending = list(dict.fromkeys(cell for cell in cells if cell not in finished))
    if pending:
        with Processes(places.work, progress.say) as processes, progress.of(len(pending)):
            asyncio.run(supervised(processes, _run_all(pending, places, processes, progress)))
    return finished_cells(cells, places)


async def _run_all(cells: Sequence[Cell], places: Places, processes: Processes, progress: ExperimentProgress) -> None:
    """All cells have one preset."""
    state = places.work / "state"
    addresses, server, aggregator = start_services(processes, model=cells[0].preset, state=state)
    await services_serving(processes, server, aggregator)
    model = await get_model(addresses.server)
    commit = current_commit()
    async with open_channel(addresses.aggregator, PLAINTEXT) as channel:
        operator = Operator(channel=channel, peer=f"the aggregator at {addresses.aggregator}")
        services = Services(
            processes=processes, places=places, addresses=addresses, operator=operator, model=model, progress=progress
        )
        for cell in cells:
            progress.begin(cell)
            report = await services.run(cell)
            save_outcome(places.cells, Outcome(cell=cell, report=asdict(report), commit=commit))
            progress.end(cell, report)
    # All is in the cells' files; the examples are made again where they are needed.
    shutil.rmtree(state, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Services:
    """What every cell of an experiment is run on."""

    processes: Processes
    places: Places
    addresses: Addresses
    operator: Operator
    model: split_service_pb2.Model
    progress: ExperimentProgress

    async def run(self, cell: Cell) -> Report:
        """The report of the cell's run, which is gone on with where there is one already."""
        start_s = time.monotonic()
        examples = await asyncio.to_thread(make_examples, cell, self.places.work / "examples")
        name = await self._run_of(cell)
        async with metered(self.addresses) as (through, counted):
            parts = [_client(cell, name, one, examples, self.places) for one in cell.process_names]
            clients = [start_client(self.processes, part, through) for part in parts]
            await clients_serving(self.processes, clients)
            run = await self._followed(name)
            # None of them is to slow down the next cell.
            await self.processes.ended(clients, CLIENT_END_TIMEOUT_S)
        finished = FinishedRun(
            run=run,
            rounds=await self.operator.rounds(name),
            clients=await self.operator.clients(name),
            model=self.model,
            seconds=time.monotonic() - start_s,
            socket=counted(),
        )
        return make_report(finished, split=cell.split)

    async def _run_of(self, cell: Cell) -> str:
        """The cell's run: the newest that did not fail, or a new one."""
        attempt = 1
        while True:
            name = str(RunName(run=cell.name if attempt == 1 else f"{cell.name}.{attempt}"))
            try:
                run = await self.operator.run(name)
            except ResourceNotFound:
                return (await self.operator.create(self._create_request(cell, name))).name
            if run.state not in (run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED):
                return name
            attempt += 1

    def _create_request(self, cell: Cell, name: str) -> run_service_pb2.CreateRunRequest:
        tokens = PRESETS.get(cell.preset, PRESETS[DEFAULT]).max_new_tokens
        config = run_config(cell, self.model, timeout_s=ROUND_TIMEOUT_S, max_new_tokens=tokens)
        return run_service_pb2.CreateRunRequest(
            run_id=RunName.parse(name).run,
            run=run_pb2.Run(display_name=cell.name, config=config),
            request_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"fednano/experiment/{name}")),
        )

    async def _followed(self, name: str) -> run_pb2.Run:
        """The run once it has succeeded; PartFailed where it does not."""
        async for event in self.operator.follow(name, silence_s=SILENCE_S):
            self.progress.apply(event)
        run = await self.operator.run(name)
        if run.state != run_pb2.Run.STATE_SUCCEEDED:
            state = run_pb2.Run.State.Name(run.state).removeprefix("STATE_").lower()
            why = run.failure.message or "no reason given"
            raise PartFailed(f"{name} {state}: {why}; logs: {self.places.work / 'logs'}")
        return run


def current_commit() -> str:
    """The checkout's, with a mark where tracked files differ from it; empty where this is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except OSError:
        return ""
    return done.stdout.strip()


def _client(cell: Cell, run: str, name: str, examples: Path, places: Places) -> ClientPart:
    return ClientPart(
        name=name,
        run=run,
        examples=examples if name == POOLED_CLIENT else examples / name,
        state=places.work / "clients",
        model=cell.preset,
        pooled=name == POOLED_CLIENT,
        evaluate_on=cell.split,
    )
