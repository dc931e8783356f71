"""Exact per-example diagonal Fisher information of a low-rank adapter, from one backward pass a batch (Eq. 6).

An adapter adds scale * up(down(x)) to each of its inputs x, so the gradient of one example's loss is a sum over its
tokens of outer products of what is already at hand: x and the gradient at the adapter's output. No pass at batch
size 1 is needed.

B: batch   M: tokens of a modality, all examples'   T: most tokens of one example   D: hidden size   R: rank
H: the two halves of the examples, every other one in each
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdapterPass:
    """What one adapter saw in one batch. The gradients are of the SUM of the examples' losses."""

    inputs_MD: Tensor
    output_gradients_MD: Tensor
    # Which of the B examples a token belongs to; never falling.
    example_index_M: Tensor
    example_count: int


def squared_gradient_sums(seen: AdapterPass, down_RD: Tensor, up_DR: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Sums over examples of squared gradients, in float64: of ``down_RD`` and of ``up_DR``."""
    down_HRD, up_HDR = squared_gradient_halves(seen, down_RD, up_DR, scale, first_index=0)
    return down_HRD.sum(0), up_HDR.sum(0)


def squared_gradient_halves(
    seen: AdapterPass, down_RD: Tensor, up_DR: Tensor, scale: float, *, first_index: int
) -> tuple[Tensor, Tensor]:
    """The same sums apart, over the examples with even and with odd indices; ``first_index`` is the first one's."""
    x_BTD = _padded(seen.inputs_MD, seen)
    g_BTD = scale * _padded(seen.output_gradients_MD, seen)
    down_gradient_BRD = torch.bmm((g_BTD @ up_DR).transpose(1, 2), x_BTD)
    up_gradient_BDR = torch.bmm(g_BTD.transpose(1, 2), x_BTD @ down_RD.T)
    return _square_halves(down_gradient_BRD, first_index), _square_halves(up_gradient_BDR, first_index)


class FisherMean:
    """Collects sums of squared gradients by parameter name, over batches, for their mean over examples."""

    def __init__(self) -> None:
        self._halves: dict[str, Tensor] = {}
        self.example_count = 0

    def add(self, halves: Mapping[str, Tensor], example_count: int) -> None:
        """``halves`` [H, ...] are of the ``example_count`` examples that come after those added before."""
        for name, half_H in halves.items():
            self._halves[name] = self._halves[name] + half_H if name in self._halves else half_H
        self.example_count += example_count

    def mean(self) -> dict[str, Tensor]:
        """Float32, sorted by name."""
        return {name: (self._halves[name].sum(0) / self.example_count).float() for name in sorted(self._halves)}

    def reliability(self) -> float:
        """Split-half reliability: what correlation to expect with an estimate from as many other examples.

        Pearson's correlation r of the two halves' estimates over all parameters, as 2 r / (1 + r) (Spearman-Brown).
        NaN where a half has no examples, or the same number for every parameter.
        """
        if not self._halves:
            return math.nan
        values = torch.cat([self._halves[name].flatten(1) for name in sorted(self._halves)], dim=1)
        even, odd = (values - values.mean(1, keepdim=True)).unbind()
        norms = float(even.norm() * odd.norm())
        correlation = float(even @ odd) / norms if norms else math.nan
        return 2 * correlation / (1 + correlation) if correlation > -1 else math.nan

    def tensors(self) -> dict[str, Tensor]:
        """What has been added, as ``restore`` takes it."""
        return dict(self._halves)

    def restore(self, halves: Mapping[str, Tensor], example_count: int) -> None:
        """Goes back to where ``halves`` were taken."""
        self._halves, self.example_count = dict(halves), example_count


def _padded(rows_MD: Tensor, seen: AdapterPass) -> Tensor:
    """[B, T, D]: each example's rows, then zeros, which add nothing to any sum over tokens."""
    counts_B = torch.bincount(seen.example_index_M, minlength=seen.example_count)
    starts_B = counts_B.cumsum(0) - counts_B
    column_M = torch.arange(len(rows_MD), device=rows_MD.device) - starts_B[seen.example_index_M]
    longest = int(counts_B.max()) if len(rows_MD) else 0
    padded_BTD = rows_MD.new_zeros(seen.example_count, longest, rows_MD.shape[1])
    padded_BTD[seen.example_index_M, column_M] = rows_MD
    return padded_BTD


def _square_halves(gradients_Bxx: Tensor, first_index: int) -> Tensor:
    """[H, ...] in float64, on the CPU: there is little of it, and not every device knows the type."""
    squares_Bxx = gradients_Bxx.square().cpu()
    even = first_index % 2
    return torch.stack([squares_Bxx[start::2].sum(0, dtype=torch.float64) for start in (even, 1 - even)])
