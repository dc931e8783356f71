"""The run's configuration decides how updates are merged, and each client's part in it is measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save_file
from update_files import write_base, write_update

from fednano.adapter_layout import Float32Array, adapter_shapes
from fednano.errors import TooFewUpdates
from fednano.merge.updates import MergeUpdate
from fednano.v1 import run_pb2 as pb
from services.aggregator.merging import initial_content, merged

SHAPES = adapter_shapes(["image"], 4, 1)
UP = "image.up.weight"


def config(method: "pb.Method.ValueType" = pb.METHOD_FEDNANO) -> pb.RunConfig:
    return pb.RunConfig(
        method=method,
        adapter=pb.AdapterConfig(rank=1, alpha=1, modalities=["image"], hidden_size=4),
        fisher=pb.FisherConfig(normalization=pb.FisherConfig.NORMALIZATION_NONE),
    )


def constant(value: float) -> dict[str, Float32Array]:
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


def write(folder: Path, thetas: list[float], fishers: list[float] | None = None) -> list[MergeUpdate]:
    return [
        write_update(folder, f"c{k}", constant(theta), None if fishers is None else constant(fishers[k]))
        for k, theta in enumerate(thetas)
    ]


def up_of(folder: Path, updates: list[MergeUpdate], run: pb.RunConfig) -> float:
    content = merged(updates, write_base(folder, constant(0.0)), run).content
    return float(load(content)[UP][0, 0])


def test_fisher_weighs_by_information_and_is_capped_by_default(tmp_path: Path) -> None:
    updates = write(tmp_path, [0.0, 0.0, 0.0, 10.0], [1.0, 1.0, 1.0, 1e6])
    run = config()
    assert up_of(tmp_path, updates, run) == pytest.approx(5.0)
    run.fisher.max_share = 0.3
    assert up_of(tmp_path, updates, run) == pytest.approx(3.0)
    run.fisher.max_share = 1.0
    assert up_of(tmp_path, updates, run) == pytest.approx(10.0, rel=1e-4)


def test_normalization_and_floor_are_the_runs(tmp_path: Path) -> None:
    updates = write(tmp_path, [0.0, 0.0, 12.0], [1.0, 1.0, 2.0])
    run = config()
    assert up_of(tmp_path, updates, run) == pytest.approx(6.0)
    run.fisher.floor = 1e9
    assert up_of(tmp_path, updates, run) == pytest.approx(4.0)
    run.fisher.floor, run.fisher.normalization = 0.0, pb.FisherConfig.NORMALIZATION_L2
    assert up_of(tmp_path, updates, run) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("method", "expected"), [(pb.METHOD_FEDAVG, 24.0), (pb.METHOD_TRIMMED_MEAN, 5.0), (pb.METHOD_MEDIAN, 6.0)]
)
def test_the_other_methods_use_adapters_alone(tmp_path: Path, method: "pb.Method.ValueType", expected: float) -> None:
    run = config(method)
    run.merge.trim_fraction = 0.2
    assert up_of(tmp_path, write(tmp_path, [1.0, 2.0, 6.0, 7.0, 104.0]), run) == expected


def test_krum_takes_one_update(tmp_path: Path) -> None:
    run = config(pb.METHOD_KRUM)
    run.merge.krum_hostile_count = 1
    assert up_of(tmp_path, write(tmp_path, [1.0, 2.0, 3.0, 90.0, 60.0]), run) == 2.0


@pytest.mark.parametrize("method", [pb.METHOD_FEDAVG, pb.METHOD_TRIMMED_MEAN, pb.METHOD_KRUM])
def test_every_method_shortens_long_updates_first(tmp_path: Path, method: "pb.Method.ValueType") -> None:
    run = config(method)
    run.merge.max_update_norm = np.sqrt(8)
    assert up_of(tmp_path, write(tmp_path, [100.0, 100.0, 100.0]), run) == pytest.approx(1.0)


def test_each_clients_part_is_measured(tmp_path: Path) -> None:
    run = config()
    run.merge.max_update_norm = 1.0
    updates = write(tmp_path, [0.1, 0.0, 0.0, 10.0], [1.0, 1.0, 1.0, 1e6])
    result = merged(updates, write_base(tmp_path, constant(0.0)), run)
    assert dict(result.client_metrics["c0"]) == pytest.approx(
        {
            "fisher/share": pytest.approx(1e-6, rel=1e-4),
            "merge/share": 1 / 6,
            "merge/update_norm": 0.1 * 8**0.5,
            "merge/clipped": 0.0,
            "merge/capped": 0.0,
        }
    )
    assert dict(result.client_metrics["c3"]) == pytest.approx(
        {
            "fisher/share": pytest.approx(1.0, rel=1e-4),
            "merge/share": 0.5,
            "merge/update_norm": 10 * 8**0.5,
            "merge/clipped": 1.0,
            "merge/capped": 2.0,
        }
    )
    assert result.round_metrics["merge/effective_clients"] == pytest.approx(3.0)
    assert result.round_metrics["fisher/effective_clients"] == pytest.approx(3.0)
    assert result.round_metrics["merge/seconds"] > 0


@pytest.mark.parametrize(("method", "count"), [(pb.METHOD_KRUM, 4), (pb.METHOD_FEDNANO, 0)])
def test_too_few_updates_are_a_reason_for_the_run_to_fail(
    tmp_path: Path, method: "pb.Method.ValueType", count: int
) -> None:
    run = config(method)
    run.merge.krum_hostile_count = 1
    with pytest.raises(TooFewUpdates, match=f"{count} are left to merge"):
        merged(write(tmp_path, [1.0] * count), write_base(tmp_path, constant(0.0)), run)


def test_the_initial_adapter_is_the_seeds() -> None:
    run = config()
    assert initial_content(run) == initial_content(run)
    assert {name: tensor.shape for name, tensor in load(initial_content(run)).items()} == dict(SHAPES)


def test_alone_nothing_is_merged_and_the_first_adapter_stays(tmp_path: Path) -> None:
    base = write_base(tmp_path, constant(0.0))
    result = merged(write(tmp_path, [1.0, 3.0]), base, config(pb.METHOD_LOCAL))
    assert result.content == base.read_bytes()


def test_fisher_information_is_raised_and_shared_as_the_run_says(tmp_path: Path) -> None:
    updates, run = write(tmp_path, [0.0, 12.0], [1.0, 4.0]), config()
    run.fisher.max_share, run.fisher.power = 1.0, 0.5
    assert up_of(tmp_path, updates, run) == pytest.approx(8.0)
    run.fisher.normalization = pb.FisherConfig.NORMALIZATION_RANK
    assert up_of(tmp_path, updates, run) == pytest.approx(6.0)


def test_the_gram_weighted_merge_takes_the_runs_step_and_damping(tmp_path: Path) -> None:
    updates, run = with_grams(tmp_path, [1.0, 1.0], [2.0, 6.0]), config(pb.METHOD_FEDNANO_GRAM)
    run.gram.step = 0.0
    assert up_of(tmp_path, updates, run) == pytest.approx(4.0)
    run.gram.step, run.gram.damping = 1.0, 1e-6
    assert up_of(tmp_path, updates, run) == pytest.approx(4.0, rel=1e-5)
    uneven = with_grams(tmp_path, [1.0, 3.0], [2.0, 6.0])
    assert up_of(tmp_path, uneven, run) == pytest.approx(5.0, rel=1e-5)


def with_grams(folder: Path, grams: list[float], ups: list[float]) -> list[MergeUpdate]:
    """The same down everywhere; each client's Gram matrix is that many times the identity."""
    made = []
    for k, (gram, up) in enumerate(zip(grams, ups, strict=True)):
        adapter = {**constant(1.0), UP: np.full(SHAPES[UP], up, np.float32)}
        half = (gram * np.eye(4, dtype=np.float32))[np.triu_indices(4)]
        save_file({"image.gram": half}, folder / f"g{k}.gram")
        made.append(replace(write_update(folder, f"g{k}", adapter), gram=folder / f"g{k}.gram"))
    return made
