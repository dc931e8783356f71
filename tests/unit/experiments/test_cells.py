"""A cell's name stands for all that decides its result, and its run is what it says."""

from dataclasses import fields, replace

import pytest

from experiments.cells import FISHER, Cell, run_config
from fednano.cli.method_flags import is_literal
from fednano.names import RunName
from fednano.v1 import run_pb2, split_service_pb2

MODEL = split_service_pb2.Model(name="nano", digest="d" * 64, hidden_size=128)
OTHER = {"preset": "smol", "examples": "x", "split": "val", "method": "fedavg", "fisher": "literal", "modalities": ()}


@pytest.mark.parametrize("field", [field.name for field in fields(Cell)])
def test_a_change_of_any_setting_is_another_cell(field: str) -> None:
    changed = replace(Cell(), **{field: OTHER.get(field, 7)})
    assert changed.name != Cell().name


def test_cells_of_one_seed_are_compared_on_the_same_examples() -> None:
    assert Cell(method="fedavg").examples_name == Cell(method="local", rank=4, split="val").examples_name
    assert Cell(seed=1).examples_name != Cell().examples_name
    assert Cell(alpha=0.1).examples_name != Cell().examples_name
    assert Cell(noisy_clients=1).examples_name != Cell().examples_name


def test_a_cells_name_is_the_name_of_a_run() -> None:
    name = Cell(method="fednano_gram", seed=123456).name
    assert RunName.parse(f"runs/{name}.12").run == f"{name}.12"


def test_the_run_is_configured_as_the_cell_says() -> None:
    cell = Cell(method="fedprox", seed=4, rank=8, modalities=("text",), local_steps=5, proximal_mu=0.5)
    config = run_config(cell, MODEL, timeout_s=60)
    assert config.method == run_pb2.METHOD_FEDPROX
    assert (config.clients_per_round, config.min_updates, config.round_count) == (5, 5, 10)
    assert (config.adapter.rank, config.adapter.alpha, list(config.adapter.modalities)) == (8, 16, ["text"])
    assert (config.train.seed, config.train.local_steps, config.train.proximal_mu) == (4, 5, 0.5)
    assert config.evaluate.every_rounds == 0


def test_centralized_is_one_client() -> None:
    cell = Cell(method="centralized")
    assert cell.process_names == ("pooled",)
    assert run_config(cell, MODEL, timeout_s=60).clients_per_round == 1


def test_literal_is_the_papers_formula() -> None:
    assert is_literal(run_config(Cell(fisher="literal"), MODEL, timeout_s=60))
    assert not any(is_literal(run_config(Cell(fisher=name), MODEL, timeout_s=60)) for name in FISHER if "l2" in name)
