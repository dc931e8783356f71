"""Exact per-example diagonal Fisher information of a low-rank adapter, from one backward pass a batch (Eq. 6).

An adapter adds scale * up(down(x)) to each of its inputs x, so the gradient of one example's loss is a sum over its
tokens of outer products of what is already at hand: x and the gradient at the adapter's output. No pass at batch
size 1 is needed.

B: batch   M: tokens of a modality, all examples'   T: most tokens of one example   D: hidden size   R: rank
"""

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
    x_BTD = _padded(seen.inputs_MD, seen)
    g_BTD = scale * _padded(seen.output_gradients_MD, seen)
    down_gradient_BRD = torch.bmm((g_BTD @ up_DR).transpose(1, 2), x_BTD)
    up_gradient_BDR = torch.bmm(g_BTD.transpose(1, 2), x_BTD @ down_RD.T)
    return _square_sum(down_gradient_BRD), _square_sum(up_gradient_BDR)


class FisherMean:
    """Collects sums of squared gradients by parameter name, over batches, for their mean over examples."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._example_count = 0

    def add(self, sums: dict[str, Tensor], example_count: int) -> None:
        for name, square_sum in sums.items():
            self._sums[name] = self._sums[name] + square_sum if name in self._sums else square_sum
        self._example_count += example_count

    def mean(self) -> dict[str, Tensor]:
        """Float32, sorted by name."""
        return {name: (self._sums[name] / self._example_count).float() for name in sorted(self._sums)}


def _padded(rows_MD: Tensor, seen: AdapterPass) -> Tensor:
    """[B, T, D]: each example's rows, then zeros, which add nothing to any sum over tokens."""
    counts_B = torch.bincount(seen.example_index_M, minlength=seen.example_count)
    starts_B = counts_B.cumsum(0) - counts_B
    column_M = torch.arange(len(rows_MD)) - starts_B[seen.example_index_M]
    longest = int(counts_B.max()) if len(rows_MD) else 0
    padded_BTD = rows_MD.new_zeros(seen.example_count, longest, rows_MD.shape[1])
    padded_BTD[seen.example_index_M, column_M] = rows_MD
    return padded_BTD


def _square_sum(gradients_Bxx: Tensor) -> Tensor:
    return gradients_Bxx.square().sum(0, dtype=torch.float64)
