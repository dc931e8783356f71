"""A client's moving average of Fisher information: over its rounds, the same when done again, and nobody else's."""

from pathlib import Path

import pytest
import torch

from fednano.names import RoundName
from fednano.v1 import run_pb2
from services.client.checkpoint import TrainingKey
from services.client.fisher_work import AVERAGES, FisherWork

KEY = TrainingKey(
    round="runs/demo/rounds/1", client="a", base_adapter_sha256="", config_sha256="c", examples_sha256="e"
)


def averaged(folder: Path, number: int, value: float, *, part: float = 0.75, key: TrainingKey = KEY) -> float:
    config = run_pb2.RunConfig(method=run_pb2.METHOD_FEDNANO, fisher=run_pb2.FisherConfig(moving_average=part))
    work = FisherWork(config, RoundName(run="demo", number=number), "a")
    return float(work.averaged({"x": torch.tensor([value])}, folder, key)["x"])


def test_the_average_is_over_the_clients_rounds_and_begins_with_the_first(tmp_path: Path) -> None:
    assert averaged(tmp_path, 1, 4.0) == 4.0
    assert averaged(tmp_path, 2, 8.0) == 0.75 * 4 + 0.25 * 8
    # It was not selected in round 3.
    assert averaged(tmp_path, 4, 0.0) == 0.75 * 5


def test_a_round_done_again_gives_the_same_and_little_is_kept(tmp_path: Path) -> None:
    for number in range(1, 6):
        first = averaged(tmp_path, number, float(number))
        assert averaged(tmp_path, number, float(number)) == first
    assert sorted(path.stem for path in (tmp_path / AVERAGES).iterdir()) == ["4", "5"]


@pytest.mark.parametrize("changed", ["client", "config_sha256", "examples_sha256"])
def test_an_average_of_other_settings_is_no_part_of_it(tmp_path: Path, changed: str) -> None:
    averaged(tmp_path, 1, 4.0)
    assert averaged(tmp_path, 2, 8.0, key=KEY.model_copy(update={changed: "other"})) == 8.0


def test_a_damaged_average_is_left_alone(tmp_path: Path) -> None:
    averaged(tmp_path, 1, 4.0)
    (tmp_path / AVERAGES / "1.safetensors").write_bytes(b"\0" * 20)
    assert averaged(tmp_path, 2, 8.0) == 8.0


def test_without_it_nothing_is_kept(tmp_path: Path) -> None:
    assert averaged(tmp_path, 1, 4.0, part=0.0) == 4.0
    assert not any(tmp_path.iterdir())
