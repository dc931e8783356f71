"""A simulated run against one on real processes: the same bits, method by method."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.cells import Cell
from fednano.cli.experiment_cells import Places, run_cells
from fednano.cli.experiment_progress import ExperimentProgress
from tools.simulation.pool import run_simulated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SMALL = Cell(train_examples=48, val_examples=16, test_examples=32, clients=2, rounds=2, seed=3)
METHODS = ("fednano", "fednano_gram", "feddpa_f", "local", "centralized")


def test_a_simulated_run_has_the_services_bits(tmp_path: Path) -> None:
    cells = [replace(SMALL, method=method) for method in METHODS]
    progress = ExperimentProgress(Console(quiet=True))
    served = run_cells(cells, Places(cells=tmp_path / "served", work=tmp_path / "work"), progress)
    places = Places(cells=tmp_path / "simulated", work=tmp_path / "simulation")
    simulated = run_simulated(cells, places, progress, process_count=1)
    digests = {served[cell].adapter_sha256 for cell in cells}
    # FedDPA-F's global adapter is FedAvg's; nothing is merged where each is alone.
    assert len(digests) == len(METHODS)
    for cell in cells:
        assert simulated[cell].simulated
        assert not served[cell].simulated
        assert simulated[cell].adapter_sha256 == served[cell].adapter_sha256, cell.method
        assert simulated[cell].report["accuracy"] == served[cell].report["accuracy"], cell.method
