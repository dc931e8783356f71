"""The experiments compare what the paper's tables and figures compare."""

import pytest

from experiments.cells import Cell, run_config
from experiments.definitions import EXPERIMENTS, FREQUENCY, METHODS, TOTAL_STEPS, Experiment
from fednano.v1 import split_service_pb2
from services.aggregator.run_config_check import check_config

MODEL = split_service_pb2.Model(name="nano", digest="d" * 64, hidden_size=128)
EACH = pytest.mark.parametrize("experiment", list(EXPERIMENTS.values()), ids=list(EXPERIMENTS))
PAPERS = {"centralized", "local", "fedavg", "fedprox", "feddpa_f", "fednano_ef", "fednano"}


@EACH
def test_the_aggregator_takes_every_arms_run(experiment: Experiment) -> None:
    for arm in experiment.arms:
        check_config(run_config(arm.cell(Cell()), MODEL, timeout_s=60))


@EACH
def test_every_arm_is_another_cell_and_is_compared_to_one_of_the_arms(experiment: Experiment) -> None:
    labels = [arm.label for arm in experiment.arms]
    assert len(set(labels)) == len(labels) == len({arm.cell(Cell()).name for arm in experiment.arms})
    baselines = {experiment.baseline_of(arm) for arm in experiment.arms}
    assert baselines - {None} <= set(labels)
    assert None in baselines


@EACH
def test_an_arm_and_its_baseline_have_the_same_examples(experiment: Experiment) -> None:
    by_label = {arm.label: arm.cell(Cell()) for arm in experiment.arms}
    for arm in experiment.arms:
        if baseline := experiment.baseline_of(arm):
            assert by_label[arm.label].examples_name == by_label[baseline].examples_name


def test_the_methods_are_the_papers_seven_and_ours() -> None:
    assert {arm.changes["method"] for arm in METHODS.arms} == PAPERS | {"fednano_gram"}


def test_frequencies_have_equal_total_steps() -> None:
    cells = [arm.cell(Cell()) for arm in FREQUENCY.arms]
    assert {cell.rounds * cell.local_steps for cell in cells} == {TOTAL_STEPS}
    assert all(cell.local_epochs >= cell.local_steps for cell in cells)
