"""The merge equals Eq. 1 in exact rationals, keeps what any weighted mean keeps, and depends on no order or block."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from update_files import write_base, write_update

from fednano.adapter_layout import Float32Array
from fednano.merge.shares import FisherWeighting
from fednano.merge.streaming import STREAMING, Streaming
from fednano.merge.updates import MergeResult, MergeUpdate
from fednano.merge.weighted import merge_weighted

NAME = "image.up.weight"
PLAIN = FisherWeighting(max_share=1.0)
small = st.integers(-1000, 1000).map(lambda number: number / 64)
mass = st.integers(1, 1000).map(lambda number: number / 64)


def update(folder: Path, client: str, theta: float, fisher: float | None = None, count: int = 1) -> MergeUpdate:
    known = None if fisher is None else {NAME: np.array([fisher], np.float32)}
    return write_update(folder, client, {NAME: np.array([theta], np.float32)}, known, example_count=count)


def merge(
    updates: Sequence[MergeUpdate],
    weighting: FisherWeighting = PLAIN,
    *,
    max_update_norm: float = 0.0,
    streaming: Streaming = STREAMING,
) -> MergeResult:
    folder = updates[0].adapter.parent
    base = write_base(folder, load_file(updates[0].adapter))
    return merge_weighted(updates, base, weighting=weighting, max_update_norm=max_update_norm, streaming=streaming)


def merged(updates: Sequence[MergeUpdate], weighting: FisherWeighting = PLAIN) -> float:
    return float(merge(updates, weighting).tensors[NAME][0])


def test_the_merge_trusts_the_client_that_knows_more(tmp_path: Path) -> None:
    assert merged([update(tmp_path, "a", 0.0, 1.0), update(tmp_path, "b", 4.0, 3.0)]) == 3.0


def test_without_fisher_it_is_the_mean_weighted_by_examples(tmp_path: Path) -> None:
    assert merged([update(tmp_path, "a", 0.0, count=1), update(tmp_path, "b", 4.0, count=3)]) == 3.0


def test_what_nobody_knows_falls_back_to_that_mean(tmp_path: Path) -> None:
    assert merged([update(tmp_path, "a", 0.0, 0.0, count=1), update(tmp_path, "b", 4.0, 0.0, count=3)]) == 3.0


def test_only_the_elements_that_nobody_knows_fall_back(tmp_path: Path) -> None:
    theta, nothing = {NAME: np.array([4, 4], np.float32)}, {NAME: np.array([1, 0], np.float32)}
    first = write_update(tmp_path, "a", {NAME: np.zeros(2, np.float32)}, nothing, example_count=3)
    second = write_update(tmp_path, "b", theta, nothing, example_count=1)
    assert merge([first, second]).tensors[NAME].tolist() == [1.0, 1.0]


def test_an_endless_floor_comes_near_that_mean(tmp_path: Path) -> None:
    updates = [update(tmp_path, "a", 0.0, 1.0), update(tmp_path, "b", 4.0, 3.0)]
    assert merged(updates, FisherWeighting(floor=1e12, max_share=1.0)) == pytest.approx(2.0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clients=st.lists(st.tuples(small, mass, st.integers(1, 500)), min_size=1, max_size=6))
def test_the_merge_equals_the_equation_in_exact_rationals(
    tmp_path: Path, clients: list[tuple[float, float, int]]
) -> None:
    updates = [update(tmp_path, f"c{i}", theta, fisher, count) for i, (theta, fisher, count) in enumerate(clients)]
    exact = [(Fraction(theta), Fraction(fisher) * count) for theta, fisher, count in clients]
    expected = sum(theta * weight for theta, weight in exact) / sum(weight for _, weight in exact)
    assert merged(updates) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)
    assert min(theta for theta, _ in exact) <= merged(updates) <= max(theta for theta, _ in exact)


def random_update(
    folder: Path, client: str, *, fisher_scale: float | None, shape: tuple[int, ...] = (7, 5)
) -> MergeUpdate:
    """Fisher information of ones for a scale of 1, none for a scale of None, random for others."""
    generator = np.random.Generator(np.random.PCG64(list(client.encode())))
    adapter: dict[str, Float32Array] = {NAME: generator.standard_normal(shape).astype(np.float32)}
    if fisher_scale is None:
        return write_update(folder, client, adapter, example_count=len(client) + 3)
    information = np.ones(shape) if fisher_scale == 1.0 else generator.random(shape) * fisher_scale
    known = {NAME: information.astype(np.float32)}
    return write_update(folder, client, adapter, known, example_count=len(client) + 3)


def test_the_order_of_the_updates_changes_no_bit(tmp_path: Path) -> None:
    # The first two cancel: whoever adds the third one before them loses it to rounding.
    updates = [
        update(tmp_path, client, theta, 3.0) for client, theta in (("a", 2.0**60), ("b", -(2.0**60)), ("c", 3.0))
    ]
    assert merged(updates) == merged(updates[::-1]) == 1.0


@pytest.mark.parametrize("fisher_scale", [3.0, None])
def test_neither_blocks_nor_threads_change_a_bit(tmp_path: Path, fisher_scale: float | None) -> None:
    names = ("a", "bb", "ccc", "dddd")
    updates = [random_update(tmp_path, name, fisher_scale=fisher_scale, shape=(171, 811)) for name in names]
    weighting = FisherWeighting(normalize_l2=True, floor=0.5)
    whole = merge(updates, weighting, max_update_norm=300.0, streaming=Streaming(threads=1))
    for block_elements, threads in ((1_000, 1), (4_097, 3), (20_000, 2)):
        streaming = Streaming(block_elements=block_elements, threads=threads)
        again = merge(updates, weighting, max_update_norm=300.0, streaming=streaming)
        assert again.tensors[NAME].tobytes() == whole.tensors[NAME].tobytes()
        assert again.parts == whole.parts


def test_fisher_of_one_is_fedavg_bit_for_bit(tmp_path: Path) -> None:
    names = ("a", "bb", "ccc")
    with_ones = merge([random_update(tmp_path, name, fisher_scale=1.0) for name in names])
    fedavg = merge([random_update(tmp_path, name, fisher_scale=None) for name in names])
    assert with_ones.tensors[NAME].tobytes() == fedavg.tensors[NAME].tobytes()
    shares = [(len(name) + 3) / 15 for name in names]
    assert [part.share for part in fedavg.parts.values()] == pytest.approx(shares)
    assert [part.share for part in with_ones.parts.values()] == pytest.approx(shares)


def test_one_client_is_the_identity(tmp_path: Path) -> None:
    one = random_update(tmp_path, "a", fisher_scale=2.0)
    result = merge([one], FisherWeighting())
    np.testing.assert_allclose(result.tensors[NAME], load_file(one.adapter)[NAME], rtol=1e-7)
    assert result.parts["a"].share == 1.0


def test_a_client_that_scales_its_fisher_gains_nothing_under_the_l2_norm(tmp_path: Path) -> None:
    honest = [random_update(tmp_path, name, fisher_scale=2.0) for name in ("a", "bb")]
    weighting = FisherWeighting(normalize_l2=True, max_share=1.0)
    before = merge(honest, weighting).tensors[NAME]
    random_update(tmp_path, "bb", fisher_scale=2.0 * 2**20)
    np.testing.assert_allclose(merge(honest, weighting).tensors[NAME], before, rtol=1e-6)


def test_a_client_above_the_cap_weighs_as_much_as_the_cap_allows(tmp_path: Path) -> None:
    updates = [update(tmp_path, name, 0.0, 1.0) for name in "abcd"] + [update(tmp_path, "liar", 4.0, 1e6)]
    result = merge(updates, FisherWeighting(max_share=0.25))
    assert result.tensors[NAME][0] == pytest.approx(1.0)
    assert result.parts["liar"].share == pytest.approx(0.25)
    assert [part.capped_tensor_count for part in result.parts.values()] == [0, 0, 0, 0, 1]


def test_a_long_update_is_shortened_and_a_short_one_is_not(tmp_path: Path) -> None:
    result = merge([update(tmp_path, "a", 1.0), update(tmp_path, "b", 100.0)], max_update_norm=3.0)
    assert result.tensors[NAME][0] == pytest.approx(2.0)
    assert [(part.update_norm, part.is_clipped) for part in result.parts.values()] == [(1.0, False), (100.0, True)]


def test_norms_are_the_same_with_and_without_a_limit(tmp_path: Path) -> None:
    updates = [random_update(tmp_path, name, fisher_scale=2.0, shape=(171, 211)) for name in ("a", "bb")]
    free, limited = merge(updates), merge(updates, max_update_norm=1e9, streaming=Streaming(block_elements=5_000))
    norms = [float(np.linalg.norm(load_file(one.adapter)[NAME].astype(float))) for one in updates]
    assert [part.update_norm for part in free.parts.values()] == pytest.approx(norms, rel=1e-12)
    assert [part.update_norm for part in limited.parts.values()] == pytest.approx(norms, rel=1e-12)
    assert free.tensors[NAME].tobytes() == limited.tensors[NAME].tobytes()


def test_the_largest_fisher_a_file_can_hold_overflows_nothing(tmp_path: Path) -> None:
    most, least = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_subnormal)
    updates = [update(tmp_path, "a", most, most), update(tmp_path, "b", -most, most), update(tmp_path, "c", 0.0, least)]
    normalized = FisherWeighting(normalize_l2=True, floor=1.0)
    for weighting in (PLAIN, normalized, FisherWeighting(floor=1.0), replace(normalized, power=3.0)):
        assert np.isfinite(merge(updates, weighting).tensors[NAME]).all()


def test_a_merge_without_meaning_is_refused(tmp_path: Path) -> None:
    one = update(tmp_path, "a", 1.0)
    with pytest.raises(ValueError, match="one update of each client"):
        merge([one, one])
    with pytest.raises(ValueError, match="of all clients or of none"):
        merge([one, update(tmp_path, "b", 1.0, 1.0)])
    with pytest.raises(ValueError, match="at least one example"):
        merge([update(tmp_path, "a", 1.0, count=0)])
