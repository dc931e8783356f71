"""An experiment whose cells are all finished needs no service: rates are chosen, rows made, files written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from experiments.cells import Cell
from experiments.definitions import COST, GRAM_STUDY, METHODS, Experiment
from experiments.outcomes import Outcome, save_outcome
from experiments.results import Results
from fednano.cli.app import app
from fednano.cli.experiment import ExperimentOptions, run_experiment
from fednano.cli.experiment_progress import ExperimentProgress

SOCKET = {"server": {"up": 4_000_000, "down": 3_000_000}, "aggregator": {"up": 2_000_000, "down": 1_000_000}}
BYTES = {"adapters": 1_000_000, "fisher": 0, "gram": 0, "activations": 2_000_000, "gradients": 2_500_000}
SEEDS, VALIDATION_SEEDS = (20, 21), (100, 101)
RATES = (0.003, 0.008)


def report(accuracy: float) -> dict[str, Any]:
    return {
        "accuracy": {"before": 0.2, "after": accuracy, "per_client": {"client-1": {"before": 0.2, "after": accuracy}}},
        "bytes": BYTES,
        "ledger": {"steps": 1250, "train_tensor_bytes_per_step": 2500.0, "socket": SOCKET},
        "seconds": 3.0,
        "adapter_sha256": "1" * 64,
    }


def finish(folder: Path, cell: Cell, accuracy: float) -> None:
    save_outcome(folder, Outcome(cell=cell, report=report(accuracy), commit="abc"))


def run(experiment: Experiment, out: Path, rates: tuple[float, ...] = ()) -> Results:
    options = ExperimentOptions(
        experiment=experiment,
        common=Cell(),
        seeds=SEEDS,
        rates=rates,
        validation_seeds=VALIDATION_SEEDS,
        out=out,
        cells=out / "cells",
    )
    return run_experiment(options, ExperimentProgress(Console(quiet=True)))


def test_each_arm_is_tested_at_the_rate_that_is_best_on_validation(tmp_path: Path) -> None:
    """Tested at any other rate it would have no finished cell, and services would be started."""
    best = {arm.label: RATES[number % 2] for number, arm in enumerate(METHODS.arms)}
    for arm in METHODS.arms:
        cell = arm.cell(Cell())
        for seed in VALIDATION_SEEDS:
            for rate in RATES:
                swept = replace(cell, seed=seed, split="val", learning_rate=rate)
                finish(tmp_path / "cells", swept, 0.8 if rate == best[arm.label] else 0.7)
        for seed in SEEDS:
            finish(tmp_path / "cells", replace(cell, seed=seed, learning_rate=best[arm.label]), 0.75)
    results = run(METHODS, tmp_path, RATES)
    assert {row.label: row.learning_rate for row in results.rows} == best
    assert all(row.accuracy.mean == 0.75 and row.seeds == SEEDS for row in results.rows)
    written = json.loads((tmp_path / "results.json").read_text())
    assert [row["label"] for row in written["rows"]] == [arm.label for arm in METHODS.arms]
    assert "learning_rate" not in written["settings"]
    text = (tmp_path / "table.md").read_text()
    assert "| FedAvg | 80.0 | 70.0 |" in text or "| FedAvg | 70.0 | 80.0 |" in text


def test_an_arm_can_take_the_rate_that_another_setting_was_swept_at(tmp_path: Path) -> None:
    """K = 10 is never swept: it is tested at the rate that was best at K = 5, which nothing else has cells for."""
    labels = ("FedAvg, alpha = 1, K = 10", "FedNano-Gram, alpha = 1, K = 10")
    study = replace(GRAM_STUDY, arms=tuple(arm for arm in GRAM_STUDY.arms if arm.label in labels))
    for method, best in (("fedavg", 0.008), ("fednano_gram", 0.003)):
        for rate in RATES:
            for seed in VALIDATION_SEEDS:
                cell = Cell(method=method, seed=seed, split="val", learning_rate=rate)
                finish(tmp_path / "cells", cell, 0.8 if rate == best else 0.7)
        for seed in SEEDS:
            finish(tmp_path / "cells", Cell(method=method, seed=seed, clients=10, learning_rate=best), 0.75)
    found = run(study, tmp_path, RATES)
    assert [row.learning_rate for row in found.rows] == [0.008, 0.003]


def test_the_cost_has_the_papers_figures_and_the_measured_ones(tmp_path: Path) -> None:
    for arm in COST.arms:
        for seed in SEEDS:
            finish(tmp_path / "cells", replace(arm.cell(Cell()), seed=seed), 0.8)
    run(COST, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "304.55 M = 4.30 %" in text
    assert "1.05 M = 0.01 %" in text
    assert "| FedAvg | 1.00 | 0.00 | 0.00 | 2.00 | 2.50 | 1,250 | 2.5 | 4.00 | 3.00 | 2.00 | 1.00 |" in text


def test_what_is_finished_is_shown_alone_where_that_is_asked_for(tmp_path: Path) -> None:
    finish(tmp_path / "cells", Cell(method="fedavg", seed=20), 0.8)
    arguments = ["--finished", "--first-seed", "20", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["experiment", "methods", *arguments])
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (row["label"], row["seeds"]) == ("FedAvg", [20])
    assert CliRunner().invoke(app, ["experiment", "adapters", *arguments]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "no experiment nothing"),
        (["methods", "--only", "FedAvgg"], "is no arm of methods"),
        (["methods", "--rates", "fast"], "is no list of numbers"),
        (["methods", "--rates", "3e-3,-1"], "--rates: -1 is no learning rate"),
        (["methods", "--rates", "nan"], "--rates: nan is no learning rate"),
        (["methods", "--learning-rate", "0"], "--learning-rate: 0 is no learning rate"),
        (["methods", "--first-seed", "9223372036854775807"], "--first-seed"),
        (["methods", "--rates", "1e-3", "--first-seed", "99"], "are those that rates are chosen on"),
    ],
)
def test_wrong_usage_is_said_before_anything_starts(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["experiment", *arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()
