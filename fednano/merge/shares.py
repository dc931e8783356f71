"""Who weighs how much in the Fisher merge of one tensor, and the cap on what one client may weigh.

Fisher information is the client's own claim, and Eq. 1 weighs by it: whoever multiplies its F by a million owns the
merged adapter. So a client's MASS in a tensor, the sum over elements of w_k F_ki, may be at most a given part of all
clients' mass. Masses are taken after the normalization, and twice: before the floor, so that a huge F cannot raise
the floor until everybody else's information is lost in it, and after it, because what comes out then is what weighs.

The cap bounds a client's weight over a whole tensor. It does not keep a client from putting all its mass on a few
elements, where it then outweighs the others; max_update_norm bounds what that can do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

# A mass that shrinks by less than this was at the cap, not above it.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class FisherWeighting:
    """How Fisher information becomes weight: ``power``, then ``by_rank`` or ``normalize_l2``, then floor and cap.

    ``max_share`` 0 is ``default_max_share``; 1 sets no cap.
    """

    normalize_l2: bool = False
    # One weight for each rank component: see ``fisher_source``.
    by_rank: bool = False
    power: float = 1.0
    floor: float = 0.0
    max_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TensorWeight:
    """One client's weight in one tensor: ``factor`` * F_i + ``added`` for element i."""

    factor: float
    added: float
    share: float
    is_capped: bool


def default_max_share(count: int) -> float:
    """Twice an equal part, and never more than half."""
    return min(0.5, 2.0 / count)


def tensor_weights(
    fisher_sums: Sequence[float],
    scales: Sequence[float],
    client_weights: Sequence[float],
    size: int,
    weighting: FisherWeighting,
) -> list[TensorWeight]:
    """The clients' weights in a tensor of ``size`` elements, from the sums of their F, what normalizes F, and w_k."""
    max_share = weighting.max_share or default_max_share(len(fisher_sums))
    sums = [scale * fisher_sum for scale, fisher_sum in zip(scales, fisher_sums, strict=True)]
    first = cap_factors([w * one for w, one in zip(client_weights, sums, strict=True)], max_share)
    capped_sums = [factor * one for factor, one in zip(first, sums, strict=True)]
    added = weighting.floor * math.fsum(capped_sums) / (len(sums) * max(size, 1))
    masses = [w * (one + added * size) for w, one in zip(client_weights, capped_sums, strict=True)]
    second = cap_factors(masses, max_share)
    total = math.fsum(factor * mass for factor, mass in zip(second, masses, strict=True))
    return [
        TensorWeight(
            factor=second[k] * first[k] * scales[k] * w,
            added=second[k] * added * w,
            share=second[k] * masses[k] / total if total > 0 else w,
            is_capped=first[k] * second[k] < 1.0 - ROUNDING,
        )
        for k, w in enumerate(client_weights)
    ]


def cap_factors(masses: Sequence[float], max_share: float) -> list[float]:
    """By what to multiply each mass, at most 1, so that none is more than ``max_share`` of what then is the sum.

    Only the largest masses shrink, n of them, all to one level that the sum of the others decides:
    level = max_share * (n * level + others). Where so few clients have any mass that no level does it, all of them
    become equal.
    """
    ascending = sorted(mass for mass in masses if mass > 0)
    level = ascending[0] if ascending else 0.0
    sums = list(accumulate(ascending))
    for count, largest in enumerate(reversed(ascending)):
        if max_share * count >= 1.0:
            break
        candidate = max_share * sums[len(sums) - 1 - count] / (1.0 - max_share * count)
        if largest <= candidate:
            level = candidate
            break
    return [1.0 if mass <= level else level / mass for mass in masses]
