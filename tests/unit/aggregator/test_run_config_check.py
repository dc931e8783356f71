"""A run that cannot be run is refused when it is created, with the field that is wrong."""

import math

import pytest
from google.protobuf import duration_pb2

from fednano.errors import FieldInvalid, Unsupported
from fednano.v1 import run_pb2 as pb
from services.aggregator.run_config_check import SUPPORTED, check_config


def config() -> pb.RunConfig:
    return pb.RunConfig(
        model_digest="abc",
        round_count=2,
        clients_per_round=5,
        min_updates=3,
        round_timeout=duration_pb2.Duration(seconds=10),
        join_timeout=duration_pb2.Duration(seconds=10),
        method=pb.METHOD_FEDNANO,
        adapter=pb.AdapterConfig(rank=4, alpha=8, modalities=["image"], hidden_size=16),
        train=pb.TrainConfig(local_epochs=1, batch_size=8, learning_rate=1e-3),
        fisher=pb.FisherConfig(normalization=pb.FisherConfig.NORMALIZATION_L2),
        evaluate=pb.EvaluateConfig(max_new_tokens=4),
    )


def changed(changes: dict[str, object]) -> pb.RunConfig:
    """``config`` with fields set by their paths, such as "merge.trim_fraction"."""
    result = config()
    for path, value in changes.items():
        *parents, field = path.split(".")
        message = result
        for parent in parents:
            message = getattr(message, parent)
        setattr(message, field, value)
    return result


@pytest.mark.parametrize("method", SUPPORTED)
def test_every_method_of_the_contract_is_built_and_accepted(method: "pb.Method.ValueType") -> None:
    alone = {"clients_per_round": 1, "min_updates": 1} if method == pb.METHOD_CENTRALIZED else {}
    check_config(changed({"method": method, **alone}))


def test_no_method_of_the_contract_is_missing() -> None:
    assert set(SUPPORTED) == set(pb.Method.values()) - {pb.METHOD_UNSPECIFIED}


@pytest.mark.parametrize("method", [998, 999])
def test_a_method_that_is_not_built_is_refused_with_those_that_are(method: "pb.Method.ValueType") -> None:
    with pytest.raises(Unsupported, match=r"METHOD_FEDNANO, .*METHOD_FEDAVG, .*METHOD_KRUM"):
        check_config(changed({"method": method}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"min_updates": 5},
        {"clients_per_round": 0, "client_fraction": 0.1},
        {"clients_per_round": 0, "client_fraction": 1.0, "min_updates": 50},
        {"min_available_clients": 3},
        {"min_available_clients": 100},
        {"fisher.max_share": 1.0},
        {"fisher.max_share": 0.01},
        {"merge.max_update_norm": 0.5},
        {"merge.trim_fraction": 0.49},
        {"method": pb.METHOD_KRUM, "merge.krum_hostile_count": 1, "min_updates": 5},
        {"method": pb.METHOD_FEDAVG, "fisher.normalization": pb.FisherConfig.NORMALIZATION_UNSPECIFIED},
        {"method": pb.METHOD_MEDIAN, "fisher.normalization": pb.FisherConfig.NORMALIZATION_UNSPECIFIED},
        {"train.local_epochs": 0, "train.local_steps": 5},
    ],
)
def test_a_sound_run_is_accepted(changes: dict[str, object]) -> None:
    check_config(changed(changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": pb.METHOD_UNSPECIFIED}, "method"),
        ({"model_digest": ""}, "model_digest"),
        ({"round_count": 0}, "round_count"),
        ({"clients_per_round": 0}, "clients_per_round"),
        ({"clients_per_round": -1}, "clients_per_round"),
        ({"clients_per_round": 10_001}, "clients_per_round"),
        ({"client_fraction": 0.5}, "clients_per_round"),
        ({"clients_per_round": 0, "client_fraction": 1.01}, "client_fraction"),
        ({"clients_per_round": 0, "client_fraction": -0.1}, "client_fraction"),
        ({"clients_per_round": 0, "client_fraction": math.nan}, "client_fraction"),
        ({"min_updates": 0}, "min_updates"),
        ({"min_updates": 6}, "min_updates"),
        ({"clients_per_round": 0, "client_fraction": 0.5, "min_updates": 10_001}, "min_updates"),
        ({"min_available_clients": 2}, "min_available_clients"),
        ({"min_available_clients": -1}, "min_available_clients"),
        ({"min_available_clients": 10_001}, "min_available_clients"),
        ({"fisher.max_share": -0.1}, "fisher.max_share"),
        ({"fisher.max_share": 1.1}, "fisher.max_share"),
        ({"fisher.max_share": math.nan}, "fisher.max_share"),
        ({"fisher.floor": math.inf}, "fisher.floor"),
        ({"fisher.max_examples": -1}, "fisher.max_examples"),
        ({"fisher.normalization": pb.FisherConfig.NORMALIZATION_UNSPECIFIED}, "fisher.normalization"),
        ({"merge.max_update_norm": -1.0}, "merge.max_update_norm"),
        ({"merge.max_update_norm": math.inf}, "merge.max_update_norm"),
        ({"merge.max_update_norm": math.nan}, "merge.max_update_norm"),
        ({"merge.trim_fraction": 0.5}, "merge.trim_fraction"),
        ({"merge.trim_fraction": -0.1}, "merge.trim_fraction"),
        ({"merge.trim_fraction": math.nan}, "merge.trim_fraction"),
        ({"merge.krum_hostile_count": -1}, "merge.krum_hostile_count"),
        ({"method": pb.METHOD_KRUM, "merge.krum_hostile_count": 1, "min_updates": 4}, "min_updates"),
        ({"method": pb.METHOD_KRUM, "min_updates": 2}, "min_updates"),
        ({"adapter.rank": 0}, "adapter.rank"),
        ({"adapter.alpha": 0.0}, "adapter.alpha"),
        ({"adapter.hidden_size": 0}, "adapter.hidden_size"),
        ({"train.local_epochs": 0}, "train.local_epochs"),
        ({"train.batch_size": 0}, "train.batch_size"),
        ({"train.learning_rate": math.nan}, "train.learning_rate"),
        ({"train.seed": -1}, "train.seed"),
        ({"evaluate.max_new_tokens": 0}, "evaluate.max_new_tokens"),
    ],
)
def test_a_run_that_cannot_be_run_is_refused_with_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(FieldInvalid) as refused:
        check_config(changed(changes))
    assert refused.value.message.startswith(f"config.{field} must ")
    assert refused.value.facts["field"] == f"run.config.{field}"


@pytest.mark.parametrize("modalities", [[], ["sound"], ["image", "image"]])
def test_modalities_are_known_ones_each_once(modalities: list[str]) -> None:
    wrong = config()
    wrong.adapter.modalities[:] = modalities
    with pytest.raises(FieldInvalid, match=r"adapter\.modalities"):
        check_config(wrong)


@pytest.mark.parametrize("field", ["round_timeout", "join_timeout"])
def test_a_wait_without_end_or_time_is_refused(field: str) -> None:
    wrong = config()
    wrong.ClearField(field)
    with pytest.raises(FieldInvalid, match=field):
        check_config(wrong)
