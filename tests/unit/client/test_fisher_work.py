"""A client's moving average of Fisher information: over its rounds, the same when done again, and nobody else's."""

from pathlib import Path

import pytest
import torch
from whole_and_split import nano_edge, nano_language, ragged_examples

from fednano.fisher import FisherMean
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


def estimated(number: int, client: str, limit: int) -> FisherMean:
    edge = nano_edge(up_std=0.1)
    config = run_pb2.RunConfig(method=run_pb2.METHOD_FEDNANO, fisher=run_pb2.FisherConfig(max_examples=limit))
    work = FisherWork(config, RoundName(run="demo", number=number), client)
    return work.estimate(
        edge, nano_language(), ragged_examples(edge) * 3, max_pass_tokens=1000, after_batch=lambda: None
    )


def test_a_limit_takes_random_examples_others_in_each_round_and_client_and_the_same_again() -> None:
    def sums(client: str) -> list[float]:
        found = [estimated(number, client, 5) for number in range(1, 5)]
        assert [mean.example_count for mean in found] == [5] * 4
        return [float(mean.mean()["image.down.weight"].sum()) for mean in found]

    assert sums("a") == sums("a") != sums("b")
    assert len(set(sums("a"))) > 1


@pytest.mark.parametrize("limit", [0, 12, 99])
def test_without_a_limit_that_is_reached_all_examples_count(limit: int) -> None:
    assert estimated(1, "a", limit).example_count == 12
