"""Compiled loops give NumPy's bits: no sum is reordered, and no product and sum share one rounding."""

import numpy as np
import pytest

from fednano.adapter_layout import Float32Array
from fednano.merge.kernels import LANES, Float64Array, add_alike, add_by_fisher, add_squared_differences, add_sums

# Neither is a multiple of anything that a processor takes at a time.
SIZES = (1, 4_097)


def narrow(seed: int, size: int) -> Float32Array:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(size, np.float32)


def wide(seed: int, size: int) -> Float64Array:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(size)


def lane_sums(values_I: Float64Array) -> Float64Array:
    sums_L = np.zeros(LANES)
    for start in range(0, values_I.size, LANES):
        sums_L[: values_I[start : start + LANES].size] += values_I[start : start + LANES]
    return sums_L


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_a_client_is_added_with_numpys_bits(size: int, clip: float) -> None:
    theta_I, fisher_I, base_I = narrow(1, size), np.square(narrow(2, size)), wide(3, size)
    numerator_I, denominator_I = wide(4, size), wide(5, size)
    theta_wide_I = theta_I.astype(np.float64)
    pulled_I = (theta_wide_I - base_I) * clip + base_I if clip < 1.0 else theta_wide_I
    weight_I = fisher_I.astype(np.float64) * 0.7 + 0.1
    expected, expected_alike = numerator_I + pulled_I * weight_I, numerator_I + pulled_I * 0.7
    alike_I, expected_denominator = numerator_I.copy(), denominator_I + weight_I
    add_by_fisher(theta_I, fisher_I, base_I, clip, 0.7, 0.1, numerator_I, denominator_I)
    add_alike(theta_I, base_I, clip, 0.7, alike_I)
    assert numerator_I.tobytes() == expected.tobytes()
    assert denominator_I.tobytes() == expected_denominator.tobytes()
    assert alike_I.tobytes() == expected_alike.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_a_sum_is_that_of_its_lanes_and_misses_no_element(size: int) -> None:
    theta_I, base_I = narrow(1, size), wide(2, size)
    moved_I, theta_wide_I = theta_I - base_I, theta_I.astype(np.float64)
    changed_L, sums_L, squares_L = np.zeros(LANES), np.zeros(LANES), np.zeros(LANES)
    add_squared_differences(theta_I, base_I, changed_L)
    add_sums(theta_I, sums_L, squares_L)
    assert changed_L.tobytes() == lane_sums(moved_I * moved_I).tobytes()
    assert sums_L.tobytes() == lane_sums(theta_wide_I).tobytes()
    assert squares_L.tobytes() == lane_sums(theta_wide_I * theta_wide_I).tobytes()
    assert sums_L.sum() == pytest.approx(theta_wide_I.sum(), abs=1e-9)
