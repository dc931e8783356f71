"""One client of ten multiplies its Fisher information by a million and sends an adapter that is far off.

Random adapters that agree but for noise stand for the honest clients'. The distance is the merged adapter's from the
merge of the nine honest updates alone; as a fraction of the hostile adapter's own distance it says how much of the
way the attack moved the global adapter.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from update_files import Tensors, distance, write_base, write_update

from fednano.adapter_layout import Float32Array, adapter_shapes
from fednano.merge.krum import merge_krum
from fednano.merge.ordered import median_trimmed_count, merge_trimmed
from fednano.merge.shares import FisherWeighting
from fednano.merge.updates import MergeUpdate
from fednano.merge.weighted import merge_weighted

SHAPES = adapter_shapes(["image", "text"], 256, 16)
HONEST_COUNT = 9
LIE = 1e6
SHIFT = 3.0
UNCAPPED = FisherWeighting(max_share=1.0)
NORMALIZED_UNCAPPED = FisherWeighting(normalize_l2=True, floor=1.0, max_share=1.0)


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Nine honest updates and the hostile one, all from ``base``. ``usual_norm`` is an honest update's L2 norm."""

    base: Path
    honest: list[MergeUpdate]
    hostile: MergeUpdate

    @property
    def everyone(self) -> list[MergeUpdate]:
        return [*self.honest, self.hostile]

    @property
    def usual_norm(self) -> float:
        tensors = load_file(self.honest[0].adapter)
        return distance(tensors, {name: np.zeros_like(tensor) for name, tensor in tensors.items()})


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    generator = np.random.Generator(np.random.PCG64(7))
    common = _random(generator, 0.1)
    honest = []
    for index in range(HONEST_COUNT):
        noise, fisher = _random(generator, 0.05), _fisher(generator)
        adapter = {name: common[name] + noise[name] for name in SHAPES}
        honest.append(write_update(tmp_path, f"honest-{index}", adapter, fisher, example_count=80 + 5 * index))
    shifted = {name: (common[name] + SHIFT).astype(np.float32) for name in SHAPES}
    lie = {name: (LIE * tensor).astype(np.float32) for name, tensor in _fisher(generator).items()}
    hostile = write_update(tmp_path, "hostile", shifted, lie, example_count=100)
    return Federation(base=write_base(tmp_path, common), honest=honest, hostile=hostile)


def _random(generator: np.random.Generator, scale: float) -> dict[str, Float32Array]:
    return {name: (scale * generator.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def _fisher(generator: np.random.Generator) -> dict[str, Float32Array]:
    """Squared gradients, as the estimate's own."""
    return {name: np.square(tensor) for name, tensor in _random(generator, 1e-3).items()}


def merge_fisher(updates: list[MergeUpdate], base: Path, weighting: FisherWeighting, limit: float = 0.0) -> Tensors:
    return merge_weighted(updates, base, weighting=weighting, max_update_norm=limit).tensors


def merge_by_order(updates: list[MergeUpdate], base: Path, dropped: int) -> Tensors:
    return merge_trimmed(_without_fisher(updates), base, dropped=dropped).tensors


def _without_fisher(updates: list[MergeUpdate]) -> list[MergeUpdate]:
    return [MergeUpdate(client=one.client, example_count=one.example_count, adapter=one.adapter) for one in updates]


def moved(federation: Federation) -> Mapping[str, float]:
    """By defence, the merged adapter's distance from the same merge of the honest updates alone."""
    base, honest, everyone = federation.base, federation.honest, federation.everyone
    limit = 1.5 * federation.usual_norm
    capped, median = FisherWeighting(), median_trimmed_count
    fedavg = [merge_fisher(_without_fisher(some), base, capped) for some in (everyone, honest)]
    fisher = merge_fisher(honest, base, capped)
    return {
        "Fisher, no cap": distance(merge_fisher(everyone, base, UNCAPPED), fisher),
        "Fisher, L2 and floor, no cap": distance(merge_fisher(everyone, base, NORMALIZED_UNCAPPED), fisher),
        "FedAvg": distance(*fedavg),
        "Fisher, default cap": distance(merge_fisher(everyone, base, capped), fisher),
        "Fisher, default cap, clipped": distance(merge_fisher(everyone, base, capped, limit), fisher),
        "Trimmed mean, 1 each end": distance(merge_by_order(everyone, base, 1), merge_by_order(honest, base, 1)),
        "Median": distance(merge_by_order(everyone, base, median(10)), merge_by_order(honest, base, median(9))),
        "Krum, 1 hostile": distance(_krum(everyone, base), _krum(honest, base)),
    }


def _krum(updates: list[MergeUpdate], base: Path) -> Tensors:
    return merge_krum(_without_fisher(updates), base, hostile_count=1).tensors


def test_the_attack_owns_the_merge_without_the_cap_and_not_with_it(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = distance(
        load_file(federation.hostile.adapter), merge_fisher(federation.honest, federation.base, FisherWeighting())
    )
    distances = moved(federation)
    with capsys.disabled():
        sys.stdout.write(f"\nDistance from the honest merge, and its part of the attack's goal of {goal:.1f}:\n")
        for defence, number in distances.items():
            sys.stdout.write(f"  {defence:30} {number:8.3f} {number / goal:7.1%}\n")
    reached = {defence: number / goal for defence, number in distances.items()}
    assert reached["Fisher, no cap"] > 0.99
    assert reached["Fisher, default cap"] < 0.3
    assert reached["Fisher, default cap, clipped"] < 0.02
    for defence in ("Trimmed mean, 1 each end", "Median", "Krum, 1 hostile"):
        assert reached[defence] < 0.05


def test_a_tenfold_lie_and_a_billionfold_one_buy_the_same(federation: Federation) -> None:
    folder, fisher = federation.base.parent, load_file(federation.honest[0].fisher or Path())
    adapter = load_file(federation.hostile.adapter)
    parts = []
    for lie in (10, 1e9):
        claimed = {name: (lie * tensor).astype(np.float32) for name, tensor in fisher.items()}
        hostile = write_update(folder, "hostile", adapter, claimed, example_count=100)
        result = merge_weighted([*federation.honest, hostile], federation.base, weighting=FisherWeighting())
        parts.append(result.parts["hostile"])
    assert [part.share for part in parts] == pytest.approx([0.2, 0.2])
    assert [part.capped_tensor_count for part in parts] == [len(SHAPES)] * 2
