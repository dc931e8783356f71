"""Second moments of an adapter's inputs: what a Gram-weighted merge knows of a client, and how they travel.

    X = (1 / n) * sum over examples i, sum over tokens t of x_it x_it^T

The inputs come from frozen pieces, so X is the same in every round.

M: tokens of a modality   D: hidden size   L: rank of a factor   G: elements of a symmetric half
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


class GramMean:
    """Collects x x^T by modality, in float64, for the mean over examples of each one's sum over tokens."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, modality: str, inputs_MD: Tensor) -> None:
        # MPS does not know the type.
        x_MD = (inputs_MD.cpu() if inputs_MD.device.type == "mps" else inputs_MD).double()
        product_DD = x_MD.T @ x_MD
        self._sums[modality] = self._sums[modality] + product_DD if modality in self._sums else product_DD

    def mean(self, example_count: int) -> dict[str, Tensor]:
        """[D, D] by modality, on the CPU."""
        return {modality: self._sums[modality].cpu() / example_count for modality in sorted(self._sums)}


@dataclass(frozen=True, kw_only=True)
class PackedGrams:
    """The tensors of a file, and how far the worst of them is from what was measured, by the Frobenius norm."""

    tensors: dict[str, Tensor]
    relative_error: float


def pack_grams(grams: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> PackedGrams:
    """Each modality's [D, D] in the form that ``shapes`` names, as ``gram_layout.gram_shapes`` gives them."""
    tensors: dict[str, Tensor] = {}
    errors = []
    for modality, gram_DD in sorted(grams.items()):
        if f"{modality}.gram" in shapes:
            packed, found_DD = _half(modality, gram_DD)
        else:
            packed, found_DD = _low_rank(modality, gram_DD, shapes[f"{modality}.gram.factor"][1])
        tensors |= packed
        norm = float(gram_DD.norm())
        errors.append(float((found_DD - gram_DD).norm()) / norm if norm else 0.0)
    return PackedGrams(tensors=tensors, relative_error=max(errors, default=0.0))


def _half(modality: str, gram_DD: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The file's tensors, and the matrix that they stand for."""
    rows_G, columns_G = torch.triu_indices(*gram_DD.shape)
    half_G = gram_DD[rows_G, columns_G].float()
    return {f"{modality}.gram": half_G}, gram_DD.float().double()


def _low_rank(modality: str, gram_DD: Tensor, rank: int) -> tuple[dict[str, Tensor], Tensor]:
    """The largest eigenvalues' part, and the diagonal of the rest: both positive semi-definite, as the whole is."""
    values_D, vectors_DD = torch.linalg.eigh(gram_DD)
    factor_DL = (vectors_DD[:, -rank:] * values_D[-rank:].clamp(min=0).sqrt()).float()
    kept_DD = factor_DL.double() @ factor_DL.double().T
    diagonal_D = (gram_DD - kept_DD).diagonal().clamp(min=0).float()
    tensors = {f"{modality}.gram.factor": factor_DL.contiguous(), f"{modality}.gram.diagonal": diagonal_D}
    return tensors, kept_DD + diagonal_D.double().diag()
