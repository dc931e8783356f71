"""Krum takes the update with the nearest neighbours, found by distances computed one by one."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from update_files import write_base, write_update

from fednano.adapter_layout import Float32Array
from fednano.merge.krum import least_krum_updates, merge_krum
from fednano.merge.streaming import STREAMING, Streaming
from fednano.merge.updates import MergeResult, MergeUpdate

NAMES = ("image.down.weight", "image.up.weight")


def update(folder: Path, client: str, center: float, seed: int, spread: float = 1.0) -> MergeUpdate:
    generator = np.random.Generator(np.random.PCG64(seed))
    tensors: dict[str, Float32Array] = {
        name: (center + spread * generator.standard_normal((5, 29))).astype(np.float32) for name in NAMES
    }
    return write_update(folder, client, tensors)


def merge(
    updates: list[MergeUpdate], hostile: int, streaming: Streaming = STREAMING, limit: float = 0.0
) -> MergeResult:
    base = write_base(updates[0].adapter.parent, load_file(updates[0].adapter))
    return merge_krum(updates, base, hostile_count=hostile, max_update_norm=limit, streaming=streaming)


def chosen(result: MergeResult) -> list[str]:
    return [client for client, part in result.parts.items() if part.share == 1.0]


def by_definition(updates: list[MergeUpdate], hostile: int) -> str:
    flat = [np.concatenate([load_file(one.adapter)[name].ravel() for name in NAMES]).astype(float) for one in updates]
    scores = []
    for index, one in enumerate(flat):
        others = sorted(float(np.square(one - other).sum()) for k, other in enumerate(flat) if k != index)
        scores.append(sum(others[: len(flat) - hostile - 2]))
    return updates[int(np.argmin(scores))].client


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_the_definitions(tmp_path: Path, seed: int) -> None:
    updates = [update(tmp_path, f"c{index}", 0.1 * index, 10 * seed + index) for index in range(7)]
    result = merge(updates, 2)
    winner = by_definition(updates, 2)
    assert chosen(result) == [winner]
    for name in NAMES:
        np.testing.assert_array_equal(result.tensors[name], load_file(tmp_path / f"{winner}.adapter")[name])


def test_hostile_updates_that_agree_are_not_chosen(tmp_path: Path) -> None:
    honest = [update(tmp_path, f"honest-{index}", 0.0, index) for index in range(5)]
    hostile = [update(tmp_path, f"hostile-{index}", 50.0, 7, spread=0.0) for index in range(2)]
    assert chosen(merge(honest + hostile, 2))[0].startswith("honest")


def test_neither_order_nor_blocks_change_the_choice(tmp_path: Path) -> None:
    updates = [update(tmp_path, f"c{index}", 0.0, index) for index in range(5)]
    whole, again = merge(updates, 1), merge(updates[::-1], 1, Streaming(stack_bytes=1, threads=1))
    assert again.parts == whole.parts
    assert [again.tensors[name].tobytes() for name in NAMES] == [whole.tensors[name].tobytes() for name in NAMES]


def test_of_equal_updates_the_first_by_name_is_chosen(tmp_path: Path) -> None:
    updates = [update(tmp_path, name, 0.0, 1) for name in ("c", "a", "b")]
    assert chosen(merge(updates, 0)) == ["a"]


def test_the_chosen_update_is_shortened_where_it_is_too_long(tmp_path: Path) -> None:
    result = merge([update(tmp_path, f"c{index}", 5.0, index) for index in range(3)], 0, limit=1.0)
    norm = np.sqrt(sum(np.square(tensor.astype(float)).sum() for tensor in result.tensors.values()))
    assert norm == pytest.approx(1.0)


def test_too_few_updates_are_refused(tmp_path: Path) -> None:
    assert least_krum_updates(1) == 5
    with pytest.raises(ValueError, match="needs 5 updates"):
        merge([update(tmp_path, f"c{index}", 0.0, index) for index in range(4)], 1)
