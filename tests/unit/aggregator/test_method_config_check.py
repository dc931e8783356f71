"""Settings of a method that make no sense are refused by field, when the run is created."""

import math

import pytest

from fednano.errors import FieldInvalid
from fednano.v1 import run_pb2 as pb
from services.aggregator.method_config_check import check_method_settings

Fisher = pb.FisherConfig
PATHS: dict[str, object] = {"method": pb.METHOD_FEDNANO_EF}


def changed(changes: dict[str, object]) -> pb.RunConfig:
    """A run of FedNano with fields set by their paths."""
    config = pb.RunConfig(
        method=pb.METHOD_FEDNANO,
        clients_per_round=5,
        adapter=pb.AdapterConfig(rank=4, hidden_size=16),
        fisher=Fisher(normalization=Fisher.NORMALIZATION_L2),
    )
    for path, value in changes.items():
        *parents, field = path.split(".")
        message = config
        for parent in parents:
            message = getattr(message, parent)
        setattr(message, field, value)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"fisher.at": Fisher.POINT_START, "fisher.max_examples": 10, "fisher.kind": Fisher.KIND_MC},
        {"fisher.at": Fisher.POINT_PATH, "fisher.power": 0.5, "fisher.moving_average": 0.9},
        {"fisher.normalization": Fisher.NORMALIZATION_RANK, "fisher.floor": 0.0, "fisher.max_share": 1.0},
        {"fisher.normalization": Fisher.NORMALIZATION_UNSPECIFIED, "fisher.kind": Fisher.KIND_ONES},
        {**PATHS, "fisher.at": Fisher.POINT_PATH},
        {"method": pb.METHOD_FEDPROX, "train.proximal_mu": 0.0},
        {"method": pb.METHOD_FEDPROX, "train.proximal_mu": 0.01},
        {"method": pb.METHOD_FEDNANO_GRAM, "gram.step": 1.0, "gram.damping": 0.01},
        {"method": pb.METHOD_FEDNANO_GRAM, "gram.step": 0.0},
        {"method": pb.METHOD_FEDDPA_F, "personal.global_weight": 0.0, "personal.local_epochs": 3},
        {"method": pb.METHOD_CENTRALIZED, "clients_per_round": 1},
    ],
)
def test_sound_settings_are_accepted(changes: dict[str, object]) -> None:
    check_method_settings(changed(changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"fisher.at": 9}, "fisher.at"),
        ({**PATHS, "fisher.at": Fisher.POINT_END}, "fisher.at"),
        ({**PATHS, "fisher.normalization": Fisher.NORMALIZATION_UNSPECIFIED}, "fisher.normalization"),
        ({**PATHS, "fisher.max_examples": 5}, "fisher.max_examples"),
        ({"fisher.at": Fisher.POINT_PATH, "fisher.max_examples": 5}, "fisher.max_examples"),
        ({"fisher.max_examples": -1}, "fisher.max_examples"),
        ({"fisher.kind": 9}, "fisher.kind"),
        ({"fisher.power": -0.5}, "fisher.power"),
        ({"fisher.power": math.inf}, "fisher.power"),
        ({"fisher.moving_average": 1.0}, "fisher.moving_average"),
        ({"fisher.moving_average": math.nan}, "fisher.moving_average"),
        ({"fisher.floor": -1.0}, "fisher.floor"),
        ({"fisher.normalization": 9}, "fisher.normalization"),
        ({"train.proximal_mu": -0.1}, "train.proximal_mu"),
        ({"train.proximal_mu": math.inf}, "train.proximal_mu"),
        ({"gram.step": 1.1}, "gram.step"),
        ({"gram.damping": 0.0}, "gram.damping"),
        ({"method": pb.METHOD_FEDNANO_GRAM, "adapter.hidden_size": 8193}, "adapter.hidden_size"),
        ({"personal.global_weight": 1.5}, "personal.global_weight"),
        ({"personal.global_weight": math.nan}, "personal.global_weight"),
        ({"personal.local_epochs": -1}, "personal.local_epochs"),
        ({"method": pb.METHOD_CENTRALIZED}, "clients_per_round"),
    ],
)
def test_settings_without_a_meaning_are_refused_with_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(FieldInvalid) as refused:
        check_method_settings(changed(changes))
    assert refused.value.message.startswith(f"config.{field} must ")
    assert refused.value.facts["field"] == f"run.config.{field}"
