"""The cap on a client's share of Fisher mass: exact, minimal, and without effect where nobody is above it."""

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fednano.merge.shares import FisherWeighting, cap_factors, default_max_share, tensor_weights

masses = st.lists(st.floats(1e-20, 1e20), min_size=1, max_size=12)
shares = st.floats(0.01, 1.0)


@given(masses=masses, max_share=shares)
def test_nobody_is_above_the_cap_where_it_can_be_kept(masses: list[float], max_share: float) -> None:
    assume(max_share * len(masses) >= 1)
    capped = [
        Fraction(mass) * Fraction(factor) for mass, factor in zip(masses, cap_factors(masses, max_share), strict=True)
    ]
    assert max(capped) <= sum(capped) * Fraction(max_share) * (1 + Fraction(1, 10**12))


@given(masses=masses, max_share=shares)
def test_a_cap_below_an_equal_part_makes_all_equal(masses: list[float], max_share: float) -> None:
    assume(max_share * len(masses) < 0.999)
    capped = [mass * factor for mass, factor in zip(masses, cap_factors(masses, max_share), strict=True)]
    assert capped == pytest.approx([min(masses)] * len(masses))


@given(masses=masses, max_share=shares)
def test_only_the_largest_shrink_and_all_to_one_level(masses: list[float], max_share: float) -> None:
    factors = cap_factors(masses, max_share)
    assert all(0 < factor <= 1 for factor in factors)
    levels = [mass * factor for mass, factor in zip(masses, factors, strict=True) if factor < 1]
    if levels:
        assert levels == pytest.approx([levels[0]] * len(levels))
        assert all(mass <= levels[0] * (1 + 1e-12) for mass, factor in zip(masses, factors, strict=True) if factor == 1)


@given(masses=masses, max_share=shares)
def test_who_is_not_above_the_cap_keeps_every_bit(masses: list[float], max_share: float) -> None:
    assume(max(masses) < sum(masses) * max_share * 0.999999)
    assert cap_factors(masses, max_share) == [1.0] * len(masses)


@given(masses=masses, factor=st.floats(1.0, 1e12))
def test_lying_more_than_the_cap_buys_nothing(masses: list[float], factor: float) -> None:
    """With the others as they are, a client at the cap weighs the same however much more it claims."""
    assume(len(masses) >= 3)
    rest = sum(masses)
    shares = []
    for claimed in (rest * 10, rest * 10 * factor):
        factors = cap_factors([*masses, claimed], 0.5)
        capped = [mass * one for mass, one in zip([*masses, claimed], factors, strict=True)]
        shares.append(capped[-1] / sum(capped))
    assert shares == pytest.approx([0.5, 0.5])


def test_one_mass_alone_or_none_at_all_stays() -> None:
    assert cap_factors([0.0, 3.0, 0.0], 0.5) == [1.0, 1.0, 1.0]
    assert cap_factors([0.0, 0.0], 0.5) == [1.0, 1.0]


def test_the_default_cap_is_twice_an_equal_part_and_at_most_half() -> None:
    assert [default_max_share(count) for count in (1, 2, 4, 5, 10)] == [0.5, 0.5, 0.5, 0.4, 0.2]


def test_the_cap_is_on_unless_it_is_switched_off() -> None:
    sums = [1.0, 1.0, 1.0, 1.0, 1e6]
    capped = tensor_weights(sums, [1.0] * 5, [0.2] * 5, 1, FisherWeighting())
    free = tensor_weights(sums, [1.0] * 5, [0.2] * 5, 1, FisherWeighting(max_share=1.0))
    assert [weight.is_capped for weight in capped] == [False, False, False, False, True]
    assert capped[4].share == pytest.approx(0.4)
    assert free[4].share > 0.999
    assert not free[4].is_capped


def test_a_claim_of_many_examples_is_under_the_cap_too() -> None:
    weights = tensor_weights([1.0] * 5, [1.0] * 5, [0.01] * 4 + [0.96], 1, FisherWeighting())
    assert weights[4].share == pytest.approx(0.4)


def test_a_huge_fisher_does_not_raise_the_floor_for_the_others() -> None:
    """Were the floor taken before the cap, what the honest clients know would drown in it."""
    honest = tensor_weights([1.0, 3.0, 2.0, 2.0, 2.0], [1.0] * 5, [0.2] * 5, 1, FisherWeighting(floor=1.0))
    attacked = tensor_weights([1.0, 3.0, 2.0, 2.0, 2e6], [1.0] * 5, [0.2] * 5, 1, FisherWeighting(floor=1.0))
    assert honest[0].added == pytest.approx(0.4)
    assert attacked[0].added < 2 * honest[0].added


def test_the_floor_is_part_of_the_mean_of_all_clients_and_elements() -> None:
    weights = tensor_weights([4.0, 8.0], [1.0, 0.5], [0.25, 0.75], 4, FisherWeighting(floor=0.5, max_share=1.0))
    assert [weight.factor for weight in weights] == [0.25, 0.375]
    assert [weight.added for weight in weights] == [0.125, 0.375]
    assert [weight.share for weight in weights] == pytest.approx([0.25, 0.75])
