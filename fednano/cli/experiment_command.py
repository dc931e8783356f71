"""`fednano experiment`: the paper's experiments on real services of this machine."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer import Option

from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.presets import DEFAULT, PRESETS
from fednano.cli.run_config import MOST_SEED
from fednano.errors import SettingsInvalid

if TYPE_CHECKING:
    from experiments.definitions import Experiment
    from fednano.cli.experiment import ExperimentOptions

NAMES = "methods, adapters, fisher, rank, frequency, clients, heterogeneity, gram, cost"
# No result is reported on seeds from here on.
FIRST_VALIDATION_SEED = 100
MOST_SEEDS = 1000
Name = Annotated[str, typer.Argument(metavar="NAME", help=f"One of {NAMES}.")]
Preset = Annotated[str, Option(help="A model preset's name, or a model's folder.")]
Seeds = Annotated[int, Option(min=1, max=MOST_SEEDS, help="Seeds of each arm: each its own examples, split and order.")]
FirstSeed = Annotated[int, Option(min=0, max=MOST_SEED - MOST_SEEDS, help="The first of them.")]
Clients = Annotated[int | None, Option(min=1, max=50, help="Client processes of a run. (the preset's: 5)")]
Rounds = Annotated[int, Option(min=1, help="Rounds of training.")]
Alpha = Annotated[float, Option(min=0.01, help="Dirichlet split: small is less alike.")]
TrainExamples = Annotated[int | None, Option(min=10, help="Over all clients. (the preset's: 1000)")]
LearningRate = Annotated[float | None, Option(help="Of AdamW, where --rates is not given. (the preset's: 0.008)")]
Rates = Annotated[str, Option(help="Learning rates, commas between: each arm takes its best on validation.")]
ValidationSeeds = Annotated[int, Option(min=1, max=MOST_SEEDS, help="Seeds that rates are chosen on, from 100 on.")]
OwnExamples = Annotated[Path | None, Option(metavar="DIR", help="Your own examples; see docs/data.md.")]
Only = Annotated[list[str] | None, Option(metavar="LABEL", help="Only this arm, as the table names it; repeatable.")]
Out = Annotated[Path | None, Option(help="Folder for results. (runs/experiments/NAME)")]
Cells = Annotated[Path | None, Option(help="Folder of finished cells, which experiments may share. (OUT/cells)")]
Finished = Annotated[bool, Option("--finished", help="Run nothing: results of what has been finished.")]
AsJson = Annotated[bool, Option("--json", help="Print only results.json; progress to stderr.")]


class Split(StrEnum):
    """What accuracy is measured on."""

    TEST = "test"
    VAL = "val"


def register(app: typer.Typer) -> None:
    app.command(epilog=EXIT_WORDS)(experiment)


def experiment(
    name: Name,
    preset: Preset = "nano",
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    clients: Clients = None,
    rounds: Rounds = 10,
    alpha: Alpha = 1.0,
    train_examples: TrainExamples = None,
    learning_rate: LearningRate = None,
    rates: Rates = "",
    validation_seeds: ValidationSeeds = 2,
    split: Annotated[Split, Option(help="What accuracy is measured on: val is to choose by.")] = Split.TEST,
    examples: OwnExamples = None,
    only: Only = None,
    out: Out = None,
    cells: Cells = None,
    finished: Finished = False,
    as_json: AsJson = False,
) -> None:
    """Runs an experiment of the paper; what is finished is not run again. Writes results.json, table.md and a plot."""

    own = "" if examples is None else str(examples.resolve())
    given = {"clients": clients, "train_examples": train_examples, "learning_rate": learning_rate}
    settings = preset_settings(preset) | {key: value for key, value in given.items() if value is not None}
    settings |= {"rounds": rounds, "alpha": alpha, "split": split.value, "examples": own}
    test_seeds = range(first_seed, first_seed + seeds)
    folder = out or Path("runs/experiments") / name

    def work() -> None:
        asked = named_experiment(name, only or [])
        if learning_rate is not None:
            check_rate(learning_rate, "--learning-rate")
        sweep = parse_rates(rates), range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + validation_seeds)
        options = make_options(asked, settings, test_seeds, sweep, folder, cells or folder / "cells")
        _run(replace(options, finished_only=finished), as_json)

    or_exit(work, interrupted="stopped; the same command continues")


def make_options(
    asked: "Experiment",
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    sweep: tuple[tuple[float, ...], Sequence[int]],
    out: Path,
    cells: Path,
) -> "ExperimentOptions":
    """``settings`` are fields of Cell; ``sweep`` has the rates and the seeds that they are chosen on."""
    # Here, for the other commands do not need what it imports.
    from experiments.cells import Cell
    from fednano.cli.experiment import ExperimentOptions

    rates, validation_seeds = sweep
    if rates and set(seeds) & set(validation_seeds):
        raise SettingsInvalid(f"--first-seed: seeds from {FIRST_VALIDATION_SEED} on are those that rates are chosen on")
    return ExperimentOptions(
        experiment=asked,
        common=Cell(**settings),
        seeds=tuple(seeds),
        rates=rates,
        validation_seeds=tuple(validation_seeds),
        out=out,
        cells=cells,
    )


def preset_settings(preset: str) -> dict[str, Any]:
    """What was chosen for it, as fields of Cell; nano's for a model's folder."""
    chosen = PRESETS.get(preset, PRESETS[DEFAULT])
    return {
        "preset": preset,
        "clients": chosen.clients,
        "train_examples": chosen.train_examples,
        "val_examples": chosen.val_examples,
        "test_examples": chosen.test_examples,
        "batch_size": chosen.batch_size,
        "learning_rate": chosen.learning_rate,
    }


def named_experiment(name: str, labels: Sequence[str]) -> "Experiment":
    """The experiment by that name, with these arms of it; with all where none is named."""
    # Here, for the other commands do not need what it imports.
    from experiments.definitions import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise SettingsInvalid(f"no experiment {name}: it is one of {NAMES}")
    found = EXPERIMENTS[name]
    known = [arm.label for arm in found.arms]
    if unknown := [label for label in labels if label not in known]:
        raise SettingsInvalid(f"--only: {unknown[0]!r} is no arm of {name}: they are {'; '.join(known)}")
    return replace(found, arms=tuple(arm for arm in found.arms if arm.label in labels or not labels))


def parse_rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(sorted({float(rate) for rate in text.split(",") if rate.strip()}))
    except ValueError:
        raise SettingsInvalid(f"--rates: {text!r} is no list of numbers, such as 2e-3,4e-3,8e-3") from None
    for rate in rates:
        check_rate(rate, "--rates")
    return rates


def check_rate(rate: float, flag: str) -> None:
    """Before any service is started: the aggregator would refuse it."""
    if not 0 < rate < math.inf:
        raise SettingsInvalid(f"{flag}: {rate:g} is no learning rate: it is a number above 0")


def _run(options: "ExperimentOptions", as_json: bool) -> None:
    # Here, for the other commands do not need what it imports.
    from experiments.tables import to_table
    from fednano.cli.experiment import run_experiment
    from fednano.cli.experiment_progress import ExperimentProgress

    console = Console(stderr=as_json)
    results = run_experiment(options, ExperimentProgress(console))
    if as_json:
        typer.echo(json.dumps(asdict(results), indent=2))
        return
    console.print(to_table(results))
    console.print(f"results.json, table.md and plot: {options.out}", markup=False, highlight=False, soft_wrap=True)
