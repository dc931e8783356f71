"""Means over seeds, with the interval that holds the true mean in 95 of 100 experiments like this one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
# Even, as Simpson's rule needs.
_SIMPSON_STEPS = 400
_LARGEST_QUANTILE = 1e3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and half the width of its Student-t interval: no width where one value is all there is."""

    mean: float
    half_width: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Of at least one value. Values are taken as independent draws from one normal distribution."""
    if len(values) < 2:
        return Estimate(mean=fmean(values), half_width=None, count=len(values))
    half_width = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean=fmean(values), half_width=half_width, count=len(values))


def t_quantile(probability: float, degrees: int) -> float:
    """Where Student's t distribution reaches ``probability``, from 1/2 on."""
    low, high = 0.0, _LARGEST_QUANTILE
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _t_probability(quantile: float, degrees: int) -> float:
    """P(T <= quantile) for quantile >= 0. With t = tan(u) * sqrt(degrees) the density is a power of a cosine."""
    end = math.atan(quantile / math.sqrt(degrees))
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    width = end / _SIMPSON_STEPS
    heights = [math.cos(step * width) ** (degrees - 1) for step in range(_SIMPSON_STEPS + 1)]
    total = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    return 0.5 + scale * total * width / 3
