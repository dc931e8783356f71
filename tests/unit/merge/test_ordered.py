"""Trimmed mean and median equal their definitions element by element, whatever the blocks."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from update_files import write_base, write_update

from fednano.adapter_layout import Float32Array
from fednano.merge.ordered import median_trimmed_count, merge_trimmed, trimmed_count
from fednano.merge.streaming import STREAMING, Streaming
from fednano.merge.updates import MergeResult, MergeUpdate

NAMES = ("image.down.weight", "image.up.weight")
SHAPES = ((3, 41), (41, 3))


def updates_of(folder: Path, count: int) -> list[MergeUpdate]:
    generator = np.random.Generator(np.random.PCG64(count))
    return [
        write_update(
            folder,
            f"c{index}",
            {
                name: generator.standard_normal(shape).astype(np.float32)
                for name, shape in zip(NAMES, SHAPES, strict=True)
            },
            example_count=index + 1,
        )
        for index in range(count)
    ]


def merge(
    updates: list[MergeUpdate], dropped: int, streaming: Streaming = STREAMING, limit: float = 0.0
) -> MergeResult:
    base = write_base(updates[0].adapter.parent, load_file(updates[0].adapter))
    return merge_trimmed(updates, base, dropped=dropped, max_update_norm=limit, streaming=streaming)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_the_median_is_numpys(tmp_path: Path, count: int) -> None:
    updates = updates_of(tmp_path, count)
    result = merge(updates, median_trimmed_count(count))
    for name in NAMES:
        stacked = np.stack([load_file(update.adapter)[name] for update in updates]).astype(np.float64)
        np.testing.assert_array_equal(result.tensors[name], np.median(stacked, axis=0).astype(np.float32))


def test_the_trimmed_mean_leaves_out_both_ends(tmp_path: Path) -> None:
    updates = updates_of(tmp_path, 7)
    result = merge(updates, 2)
    for name in NAMES:
        ordered = sorted_values(updates, name)
        np.testing.assert_allclose(result.tensors[name], ordered[2:-2].mean(axis=0), rtol=1e-6)


def sorted_values(updates: list[MergeUpdate], name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.sort(np.stack([load_file(update.adapter)[name] for update in updates]).astype(np.float64), axis=0)


def test_trimming_nothing_is_the_plain_mean(tmp_path: Path) -> None:
    updates = updates_of(tmp_path, 4)
    expected = sorted_values(updates, NAMES[0]).mean(axis=0)
    np.testing.assert_allclose(merge(updates, 0).tensors[NAMES[0]], expected, rtol=1e-6, atol=1e-7)


def test_neither_order_nor_blocks_nor_threads_change_a_bit(tmp_path: Path) -> None:
    updates = updates_of(tmp_path, 6)
    whole = merge(updates, 1, Streaming(threads=1), limit=10.0)
    again = merge(updates[::-1], 1, Streaming(stack_bytes=1, threads=3), limit=10.0)
    assert [again.tensors[name].tobytes() for name in NAMES] == [whole.tensors[name].tobytes() for name in NAMES]
    assert again.parts == whole.parts


def test_a_share_is_the_part_of_the_kept_values(tmp_path: Path) -> None:
    parts = merge(updates_of(tmp_path, 5), 1).parts
    assert sum(part.share for part in parts.values()) == pytest.approx(1.0)
    far: dict[str, Float32Array] = {
        name: np.full(shape, 1e9, np.float32) for name, shape in zip(NAMES, SHAPES, strict=True)
    }
    attacked = merge([*updates_of(tmp_path, 5), write_update(tmp_path, "c9", far)], 1).parts
    assert attacked["c9"].share == 0.0


def test_how_many_are_dropped_is_rounded_down() -> None:
    assert [trimmed_count(0.2, count) for count in (1, 4, 5, 9, 10)] == [0, 0, 1, 1, 2]
    assert [median_trimmed_count(count) for count in (1, 2, 3, 4)] == [0, 0, 1, 1]


def test_dropping_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves none of 4"):
        merge(updates_of(tmp_path, 4), 2)
