"""Intervals against tables and closed forms."""

import math

import pytest

from experiments.statistics import estimate, t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423), (1000, 1.9623)]
)
def test_the_quantile_is_the_one_of_the_tables(degrees: int, expected: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(expected, abs=5e-5)


def test_with_one_degree_of_freedom_it_is_cauchys() -> None:
    assert t_quantile(0.9, 1) == pytest.approx(math.tan(math.pi * 0.4), rel=1e-6)


def test_an_interval_is_the_quantile_times_the_standard_error() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-4)


def test_one_value_has_no_interval_and_excludes_nothing() -> None:
    found = estimate([5.0])
    assert found.half_width is None
    assert not found.excludes_zero


def test_zero_is_excluded_where_it_lies_outside() -> None:
    assert estimate([1.0, 1.1, 0.9]).excludes_zero
    assert not estimate([1.0, -1.1, 0.9]).excludes_zero
