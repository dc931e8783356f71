"""Cells over several processes, each with its own model and one thread: torch's bits depend on the threads."""

import multiprocessing
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path

import torch

from experiments.cells import Cell
from experiments.examples import make_examples
from experiments.outcomes import Outcome, save_outcome
from fednano.cli.experiment_cells import Places, current_commit, finished_cells
from fednano.cli.experiment_progress import ExperimentProgress
from fednano.model.language import load_language_model
from fednano.model.parts import load_edge, resolve_model
from fednano.telemetry import configure_logging
from services.client.features import Features
from tools.simulation.federation import Model, load_holdings, simulate


def run_simulated(
    cells: Sequence[Cell], places: Places, progress: ExperimentProgress, *, process_count: int
) -> dict[Cell, Outcome]:
    """The outcomes of all cells, those without one simulated first. Each is kept when it is there."""
    finished = finished_cells(cells, places)
    groups: dict[str, list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        if cell not in finished:
            groups.setdefault(cell.examples_name, []).append(cell)
    commit = current_commit()
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(process_count, mp_context=spawning, initializer=_begin) as pool:
        futures = [pool.submit(_simulate_group, group, places, commit) for group in groups.values()]
        for done, future in enumerate(as_completed(futures), 1):
            progress.say(f"{done}/{len(futures)} groups of cells: {', '.join(future.result())}")
    return finished_cells(cells, places)


def _begin() -> None:
    configure_logging("simulation", level="warning")
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def _model(preset: str) -> Model:
    folder = resolve_model(preset)
    return Model(parts=load_edge(folder / "edge"), language=load_language_model(folder / "server"))


def _simulate_group(cells: Sequence[Cell], places: Places, commit: str) -> list[str]:
    """Cells with the same examples, whose pictures are encoded once."""
    examples = make_examples(cells[0], places.work / "examples")
    features, said = Features(_model(cells[0].preset).parts), []
    for cell in cells:
        model = _model(cell.preset)
        holdings = load_holdings(cell, examples, model.parts, features)
        with tempfile.TemporaryDirectory() as folder:
            report = simulate(cell, model, holdings, Path(folder))
        outcome = Outcome(cell=cell, report=report, commit=commit, simulated=True)
        save_outcome(places.cells, outcome)
        said.append(f"{cell.name} {outcome.accuracy:.1%} in {report['seconds']:.0f} s")
    shutil.rmtree(examples, ignore_errors=True)
    return said
