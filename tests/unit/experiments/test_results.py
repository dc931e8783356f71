"""Outcomes become rows: means, paired differences, and what a table says of them; each can be checked by hand."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from experiments.cells import Cell
from experiments.definitions import FISHER, METHODS, RANK, Experiment
from experiments.outcomes import Outcome, load_outcome, save_outcome
from experiments.plots import write_plots
from experiments.results import Results, Row, make_rows
from experiments.tables import to_markdown, to_table
from fednano.errors import SettingsInvalid


def outcome(cell: Cell, first: float, second: float, sha256: str = "") -> Outcome:
    per_client = {"client-2": {"before": 0.1, "after": second}, "client-1": {"before": 0.3, "after": first}}
    return Outcome(
        cell=cell,
        report={
            "accuracy": {"before": 0.2, "after": (first + second) / 2, "per_client": per_client},
            "bytes": {"adapters": 1_000_000, "activations": 2_000_000},
            "seconds": 3.0,
            "adapter_sha256": sha256 or cell.name,
        },
        commit="abc",
    )


def outcomes(values: dict[str, list[float]]) -> dict[str, list[Outcome]]:
    return {
        label: [outcome(Cell(method=label, seed=seed), value, value) for seed, value in enumerate(each)]
        for label, each in values.items()
    }


def results(experiment: Experiment, rows: tuple[Row, ...]) -> Results:
    return Results(
        name=experiment.name,
        title=experiment.title,
        note=experiment.note,
        x_label=experiment.x_label,
        commits=("abc",),
        settings={"rounds": 10},
        rates={"FedAvg": {0.003: 0.75, 0.008: 0.8}},
        rows=rows,
    )


def test_a_difference_is_taken_seed_by_seed() -> None:
    rows = make_rows(METHODS, outcomes({"FedAvg": [0.5, 0.9], "FedNano": [0.6, 1.0]}))
    fedavg, fednano = (next(row for row in rows if row.label == label) for label in ("FedAvg", "FedNano"))
    assert fedavg.difference is None
    assert fednano.difference is not None
    assert fednano.difference.mean == pytest.approx(0.1)
    assert fednano.difference.half_width == pytest.approx(0.0, abs=1e-9)
    assert fednano.accuracy.mean == pytest.approx(0.8)
    assert not fednano.same_bits


def test_seeds_that_the_baseline_lacks_are_left_out_of_the_difference() -> None:
    (_, fednano) = make_rows(METHODS, outcomes({"FedAvg": [0.5], "FedNano": [0.6, 1.0]}))
    assert fednano.difference is not None
    assert (fednano.difference.count, fednano.accuracy.count) == (1, 2)


def test_the_same_adapter_is_told() -> None:
    label = "FedNano without Fisher (F = 1)"
    both = {
        "FedAvg": [outcome(Cell(method="fedavg"), 0.5, 0.7, "same")],
        label: [outcome(Cell(fisher="ones"), 0.5, 0.7, "same")],
    }
    rows = make_rows(FISHER, both)
    assert [row.same_bits for row in rows if row.label == label] == [True]
    assert "same bits" in to_markdown(results(FISHER, rows), [])


def test_clients_are_columns_in_the_order_of_their_numbers() -> None:
    rows = make_rows(METHODS, {"FedAvg": [outcome(Cell(method="fedavg"), 0.5, 0.75)]})
    text = to_markdown(results(METHODS, rows), ["accuracy.png"])
    assert "| FedAvg | 50.0 | 75.0 | 62.5 |" in text
    assert "![accuracy.png](accuracy.png)" in text
    assert "Before training: 20.0 %." in text


def test_a_difference_whose_interval_excludes_zero_is_bold() -> None:
    rows = make_rows(METHODS, outcomes({"FedAvg": [0.5, 0.9], "FedNano": [0.6, 1.01], "Local": [0.4, 1.0]}))
    text = to_markdown(results(METHODS, rows), [])
    assert "**+10.5 ± 6.4**" in text
    assert "| +0.0 ± 127.1 |" in text


@pytest.mark.parametrize("experiment", [METHODS, RANK])
def test_a_plot_is_drawn_of_bars_and_of_curves(tmp_path: Path, experiment: Experiment) -> None:
    rows = make_rows(experiment, outcomes({arm.label: [0.5, 0.6] for arm in experiment.arms}))
    (name,) = write_plots(tmp_path, results(experiment, rows))
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_an_outcome_is_found_again_by_its_cell_alone(tmp_path: Path) -> None:
    kept = outcome(Cell(seed=3, modalities=("text",)), 0.5, 0.6)
    save_outcome(tmp_path, kept)
    assert load_outcome(tmp_path, kept.cell) == kept
    assert load_outcome(tmp_path, replace(kept.cell, seed=4)) is None


@pytest.mark.parametrize("text", ["", "{}", json.dumps({"cell": asdict(Cell(seed=9)), "report": {}, "commit": ""})])
def test_a_file_that_is_not_the_cells_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / f"{Cell().name}.json"
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match=path.name):
        load_outcome(tmp_path, Cell())


def test_a_terminal_shows_no_markdown() -> None:
    rows = make_rows(METHODS, outcomes({"FedAvg": [0.5, 0.9], "FedNano": [0.6, 1.01]}))
    shown = [cell for column in to_table(results(METHODS, rows)).columns for cell in column.cells]
    assert "+10.5 ± 6.4" in shown


def test_runs_that_sent_nothing_say_so_and_have_no_bytes() -> None:
    served = outcomes({"FedAvg": [0.5, 0.9]})
    simulated = {
        "FedAvg": [replace(one, simulated=True, report={**one.report, "bytes": {}}) for one in served["FedAvg"]]
    }
    rows = make_rows(METHODS, simulated)
    assert (rows[0].sent_bytes, rows[0].bytes) == (None, {})
    text = to_markdown(replace(results(METHODS, rows), simulated=2), [])
    assert "MB a run" not in text
    assert "2 of the 2 runs in one process" in text
    mixed = make_rows(METHODS, {"FedAvg": [simulated["FedAvg"][0], served["FedAvg"][1]]})
    assert mixed[0].sent_bytes == 3_000_000
    text = to_markdown(results(METHODS, make_rows(METHODS, served)), [])
    assert "MB a run" in text
    assert "in one process" not in text


def test_an_outcome_says_whether_it_was_simulated(tmp_path: Path) -> None:
    one = outcome(Cell(method="fedavg"), 0.5, 0.5)
    for simulated in (True, False):
        save_outcome(tmp_path, replace(one, simulated=simulated))
        found = load_outcome(tmp_path, one.cell)
        assert found is not None
        assert found.simulated is simulated
