"""A client's Fisher information as a merge reads it: raised to a power, and shared within rank components.

An adapter's product is a sum over R components, each an up column times a down row. Weights of their own for every
element pull the two apart; one weight for each component keeps them together.
Dimensions: I the elements of one block · D hidden size · R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fednano.adapter_layout import Float32Array
from fednano.merge.kernels import Float64Array
from fednano.merge.shares import FisherWeighting
from fednano.merge.tensor_file import TensorFile

DOWN, UP = ".down.weight", ".up.weight"
# More than this no file of Fisher information can hold, and no power of one makes of it.
LARGEST = float(np.finfo(np.float32).max)


class FisherSource(Protocol):
    """Information by tensor name, flattened."""

    def read(self, name: str, start: int, out_I: Float32Array) -> None:
        """Fills ``out_I`` with the elements from ``start`` on."""


def fisher_source(file: TensorFile, weighting: FisherWeighting) -> FisherSource:
    """The file's values as ``weighting`` wants them, before any normalization over a client's parameters."""
    raised = _Raised(file=file, power=weighting.power) if weighting.power != 1.0 else file
    return _rank_shared(file, raised) if weighting.by_rank else raised


@dataclass(frozen=True, kw_only=True)
class _Raised:
    file: TensorFile
    power: float

    def read(self, name: str, start: int, out_I: Float32Array) -> None:
        self.file.read(name, start, out_I)
        # A client says how large its information is: with a power above 1 it could be endless otherwise.
        with np.errstate(over="ignore"):
            raised_I = np.power(out_I, self.power, dtype=np.float64)
        np.minimum(raised_I, LARGEST, out=out_I, casting="same_kind")


@dataclass(frozen=True, kw_only=True)
class _RankShared:
    """``components`` has each modality's weights [R]; ``places`` the tensors' shapes."""

    components: Mapping[str, Float64Array]
    file: TensorFile

    def read(self, name: str, start: int, out_I: Float32Array) -> None:
        columns = self.file.places[name].shape[1]
        element_I = np.arange(start, start + out_I.size)
        rank_I = element_I // columns if name.endswith(DOWN) else element_I % columns
        out_I[:] = self.components[_modality(name)][rank_I]


def _rank_shared(file: TensorFile, source: FisherSource) -> _RankShared:
    """Each component's mean over its up column plus that over its down row; over the components their mean is 1."""
    components: dict[str, Float64Array] = {}
    for name, place in sorted(file.places.items()):
        values_I = np.empty(place.size, np.float32)
        source.read(name, 0, values_I)
        axis = 1 if name.endswith(DOWN) else 0
        mean_R = values_I.reshape(place.shape).mean(axis=axis, dtype=np.float64)
        modality = _modality(name)
        components[modality] = components[modality] + mean_R if modality in components else mean_R
    for modality, sum_R in components.items():
        mean = float(sum_R.mean())
        components[modality] = sum_R / mean if mean > 0 else sum_R
    return _RankShared(components=components, file=file)


def _modality(name: str) -> str:
    return name.removesuffix(DOWN).removesuffix(UP)
