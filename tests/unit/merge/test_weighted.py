"""The merge equals Eq. 1 in exact rationals, and keeps what any weighted mean keeps."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fednano.merge.updates import MergeUpdate
from fednano.merge.weighted import merge_adapters

NAME = "image.up.weight"
small = st.integers(-1000, 1000).map(lambda number: number / 64)
mass = st.integers(1, 1000).map(lambda number: number / 64)


def update(folder: Path, client: str, theta: float, fisher: float | None = None, count: int = 1) -> MergeUpdate:
    adapter = folder / f"{client}-adapter"
    save_file({NAME: np.array([theta], np.float32)}, adapter)
    if fisher is None:
        return MergeUpdate(client=client, example_count=count, adapter=adapter)
    save_file({NAME: np.array([fisher], np.float32)}, folder / f"{client}-fisher")
    return MergeUpdate(client=client, example_count=count, adapter=adapter, fisher=folder / f"{client}-fisher")


def merged(updates: Sequence[MergeUpdate], *, floor: float = 0.0) -> float:
    return float(merge_adapters(updates, floor=floor)[NAME][0])


def test_the_merge_trusts_the_client_that_knows_more(tmp_path: Path) -> None:
    assert merged([update(tmp_path, "a", 0.0, 1.0), update(tmp_path, "b", 4.0, 3.0)]) == 3.0


def test_without_fisher_it_is_the_mean_weighted_by_examples(tmp_path: Path) -> None:
    assert merged([update(tmp_path, "a", 0.0, count=1), update(tmp_path, "b", 4.0, count=3)]) == 3.0


def test_what_nobody_knows_falls_back_to_that_mean(tmp_path: Path) -> None:
    assert merged([update(tmp_path, "a", 0.0, 0.0, count=1), update(tmp_path, "b", 4.0, 0.0, count=3)]) == 3.0


def test_an_endless_floor_comes_near_that_mean(tmp_path: Path) -> None:
    updates = [update(tmp_path, "a", 0.0, 1.0), update(tmp_path, "b", 4.0, 3.0)]
    assert merged(updates, floor=1e12) == pytest.approx(2.0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clients=st.lists(st.tuples(small, mass, st.integers(1, 500)), min_size=1, max_size=6))
def test_the_merge_equals_the_equation_in_exact_rationals(
    tmp_path: Path, clients: list[tuple[float, float, int]]
) -> None:
    updates = [update(tmp_path, f"c{i}", theta, fisher, count) for i, (theta, fisher, count) in enumerate(clients)]
    exact = [(Fraction(theta), Fraction(fisher) * count) for theta, fisher, count in clients]
    expected = sum(theta * weight for theta, weight in exact) / sum(weight for _, weight in exact)
    assert merged(updates) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)
    assert min(theta for theta, _ in exact) <= merged(updates) <= max(theta for theta, _ in exact)


def write_random(
    folder: Path, client: str, *, fisher_scale: float | None, shape: tuple[int, ...] = (7, 5)
) -> MergeUpdate:
    generator = np.random.Generator(np.random.PCG64(list(client.encode())))
    adapter, fisher = folder / f"{client}.adapter", folder / f"{client}.fisher"
    save_file({NAME: generator.standard_normal(shape).astype(np.float32)}, adapter)
    if fisher_scale is None:
        return MergeUpdate(client=client, example_count=len(client) + 3, adapter=adapter)
    mass = np.ones(shape) if fisher_scale == 1.0 else generator.random(shape) * fisher_scale
    save_file({NAME: mass.astype(np.float32)}, fisher)
    return MergeUpdate(client=client, example_count=len(client) + 3, adapter=adapter, fisher=fisher)


def test_the_order_of_the_updates_changes_no_bit(tmp_path: Path) -> None:
    updates = [write_random(tmp_path, client, fisher_scale=3.0) for client in ("a", "bb", "ccc", "dddd")]
    forwards, backwards = merge_adapters(updates)[NAME], merge_adapters(updates[::-1])[NAME]
    assert forwards.tobytes() == backwards.tobytes()


def test_fisher_of_one_is_fedavg_bit_for_bit(tmp_path: Path) -> None:
    names = ("a", "bb", "ccc")
    with_ones = merge_adapters([write_random(tmp_path, name, fisher_scale=1.0) for name in names])
    fedavg = merge_adapters([write_random(tmp_path, name, fisher_scale=None) for name in names])
    assert with_ones[NAME].tobytes() == fedavg[NAME].tobytes()


def test_one_client_is_the_identity(tmp_path: Path) -> None:
    update = write_random(tmp_path, "a", fisher_scale=2.0)
    np.testing.assert_allclose(merge_adapters([update])[NAME], load_file(update.adapter)[NAME], rtol=1e-7)


def test_a_client_that_scales_its_fisher_gains_nothing_under_the_l2_norm(tmp_path: Path) -> None:
    honest = [write_random(tmp_path, name, fisher_scale=2.0) for name in ("a", "bb")]
    before = merge_adapters(honest, normalize_l2=True)[NAME]
    write_random(tmp_path, "bb", fisher_scale=2.0 * 2**20)
    np.testing.assert_allclose(merge_adapters(honest, normalize_l2=True)[NAME], before, rtol=1e-6)
