"""`fednano experiment` without services: a third of the time a run, the same bits, nothing measured of a network.

For the hundreds of runs that choosing a learning rate takes. Takes the command's options, and writes what it writes:

    python -m tools.simulate gram --rates 2e-3,3e-3,5e-3,7e-3 --seeds 5 --first-seed 30 --processes 2
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from experiments.tables import to_table
from fednano.cli.experiment import run_experiment
from fednano.cli.experiment_command import (
    FIRST_VALIDATION_SEED,
    Alpha,
    Cells,
    FirstSeed,
    LearningRate,
    Name,
    Only,
    Out,
    Preset,
    Rates,
    Seeds,
    Split,
    ValidationSeeds,
    check_rate,
    make_options,
    named_experiment,
    parse_rates,
    preset_settings,
)
from fednano.cli.experiment_progress import ExperimentProgress
from tools.simulation.pool import run_simulated


def main(
    name: Name,
    preset: Preset = "nano",
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    alpha: Alpha = 1.0,
    learning_rate: LearningRate = None,
    rates: Rates = "",
    validation_seeds: ValidationSeeds = 2,
    split: Annotated[Split, Option(help="What accuracy is measured on: val is to choose by.")] = Split.TEST,
    only: Only = None,
    out: Out = None,
    cells: Cells = None,
    processes: Annotated[int, Option(min=1, help="Cells at a time, each with one thread.")] = 2,
) -> None:
    """Simulates an experiment's runs; what is finished, on services or here, is not run again."""
    settings = preset_settings(preset) | {"alpha": alpha, "split": split.value}
    if learning_rate is not None:
        check_rate(learning_rate, "--learning-rate")
        settings["learning_rate"] = learning_rate
    folder = out or Path("runs/simulations") / name
    sweep = parse_rates(rates), range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + validation_seeds)
    test_seeds = range(first_seed, first_seed + seeds)
    options = make_options(
        named_experiment(name, only or []), settings, test_seeds, sweep, folder, cells or folder / "cells"
    )
    console = Console(soft_wrap=True)
    runner = partial(run_simulated, process_count=processes)
    console.print(to_table(run_experiment(options, ExperimentProgress(console), runner)))


if __name__ == "__main__":
    typer.run(main)
