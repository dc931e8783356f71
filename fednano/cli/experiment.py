"""An experiment: learning rates on validation where they are swept, then every arm and seed, then table and plots."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from experiments.cells import Cell
from experiments.cost import cost_lines
from experiments.definitions import COST, Arm, Experiment
from experiments.outcomes import Outcome
from experiments.plots import write_plots
from experiments.results import Results, make_rows
from experiments.tables import to_markdown
from fednano.cli.experiment_cells import Places, finished_cells, run_cells
from fednano.cli.experiment_progress import ExperimentProgress
from fednano.errors import SettingsInvalid

# Cells to their outcomes, those that are finished and those that it runs.
Runner = Callable[[Sequence[Cell], Places, ExperimentProgress], Mapping[Cell, Outcome]]
# Settings that a reader of the table wants to see, of those that all arms share.
DATA_FIELDS = ("preset", "examples", "train_examples", "test_examples", "clients", "alpha", "split")
TRAINING_FIELDS = ("rounds", "rank", "batch_size", "local_epochs", "learning_rate", "proximal_mu", "gram_step")


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """``common`` is what arms change; ``rates`` empty leaves each arm its own learning rate."""

    experiment: Experiment
    common: Cell
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    validation_seeds: tuple[int, ...]
    out: Path
    cells: Path
    # Nothing is run: what has been finished is what there is.
    finished_only: bool = False

    @property
    def places(self) -> Places:
        return Places(cells=self.cells, work=self.out / "work")


def run_experiment(options: ExperimentOptions, progress: ExperimentProgress, run: Runner = run_cells) -> Results:
    """Runs what has not been run by ``run``, and writes results.json, table.md and plots to ``options.out``.

    Raises SettingsInvalid where only what is finished is asked for, and nothing is.
    """

    def outcomes_of(cells: Sequence[Cell]) -> Mapping[Cell, Outcome]:
        return finished_cells(cells, options.places) if options.finished_only else run(cells, options.places, progress)

    swept = _sweep(options, outcomes_of)
    commons = {arm.label: _with_best_rate(options.common, swept.get(arm.label)) for arm in options.experiment.arms}
    cells = [
        (arm, arm.cell(replace(commons[arm.label], seed=seed)))
        for seed in options.seeds
        for arm in options.experiment.arms
        if seed in _seeds_of(arm, options.seeds)
    ]
    found = outcomes_of([cell for _, cell in cells])
    outcomes: dict[str, list[Outcome]] = {}
    for arm, cell in cells:
        if cell in found:
            outcomes.setdefault(arm.label, []).append(found[cell])
    if not outcomes:
        raise SettingsInvalid(f"--finished: {options.cells} has no finished cell of {options.experiment.name}")
    results = _results(options, outcomes, swept)
    options.out.mkdir(parents=True, exist_ok=True)
    text = to_markdown(results, write_plots(options.out, results))
    if options.experiment.name == COST.name:
        text += "\n" + "\n".join(cost_lines(outcomes)) + "\n"
    (options.out / "table.md").write_text(text)
    # Last, for its presence says that the experiment is complete.
    (options.out / "results.json").write_text(json.dumps(asdict(results), indent=2) + "\n")
    return results


def _sweep(
    options: ExperimentOptions, outcomes_of: Callable[[Sequence[Cell]], Mapping[Cell, Outcome]]
) -> dict[str, dict[float, float]]:
    """The mean accuracy of each arm at each rate, on the validation split of seeds that no result is reported on."""
    cells = [
        (arm.label, rate, arm.swept_cell(replace(options.common, seed=seed, split="val", learning_rate=rate)))
        for seed in options.validation_seeds
        for arm in options.experiment.arms
        for rate in options.rates
    ]
    values: dict[str, dict[float, list[float]]] = {}
    found = outcomes_of([cell for _, _, cell in cells])
    for label, rate, cell in cells:
        if cell in found:
            values.setdefault(label, {}).setdefault(rate, []).append(found[cell].accuracy)
    return {label: {rate: fmean(each) for rate, each in by_rate.items()} for label, by_rate in values.items()}


def _with_best_rate(common: Cell, accuracies: dict[float, float] | None) -> Cell:
    """The smallest of the best rates."""
    if not accuracies:
        return common
    return replace(common, learning_rate=max(sorted(accuracies), key=lambda rate: accuracies[rate]))


def _seeds_of(arm: Arm, seeds: Sequence[int]) -> Sequence[int]:
    return seeds[: arm.most_seeds] if arm.most_seeds else seeds


def _results(
    options: ExperimentOptions, outcomes: dict[str, list[Outcome]], swept: dict[str, dict[float, float]]
) -> Results:
    experiment = options.experiment
    commits = sorted({outcome.commit for each in outcomes.values() for outcome in each})
    changed = {field for arm in experiment.arms for field in arm.changes} | ({"learning_rate"} if swept else set())
    fields = asdict(options.common)
    return Results(
        name=experiment.name,
        title=experiment.title,
        note=experiment.note,
        x_label=experiment.x_label,
        commits=tuple(commits),
        settings={name: fields[name] for name in (*DATA_FIELDS, *TRAINING_FIELDS) if name not in changed},
        rates=swept,
        simulated=sum(outcome.simulated for each in outcomes.values() for outcome in each),
        rows=make_rows(experiment, outcomes),
    )
