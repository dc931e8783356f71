"""A client's Gram matrix as a merge reads it: whole, or of low rank with a diagonal, and never more than one at a time.

Dimensions: D hidden size · R rank of the adapters · L rank of a factor · G elements of a symmetric half.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fednano.merge.kernels import Float64Array
from fednano.merge.tensor_file import TensorFile


class Gram(Protocol):
    """X, symmetric and positive semi-definite, [D, D]."""

    @property
    def trace(self) -> float: ...

    def times(self, left_RD: Float64Array) -> Float64Array:
        """[R, D]: ``left_RD`` @ X."""

    def add_to(self, sum_DD: Float64Array, factor: float) -> None:
        """Adds ``factor`` * X."""


def read_gram(file: TensorFile, modality: str) -> Gram:
    """From a file whose shapes are ``gram_layout.gram_shapes``."""
    name = f"{modality}.gram"
    if name in file.places:
        return _Whole(gram_DD=read_whole_gram(file, name))
    factor_DL = _read(file, f"{name}.factor").reshape(file.places[f"{name}.factor"].shape)
    return _LowRank(factor_DL=factor_DL, diagonal_D=_read(file, f"{name}.diagonal"))


def read_whole_gram(file: TensorFile, name: str) -> Float64Array:
    """[D, D], of the tensor that is its symmetric half."""
    return _unpacked(_read(file, name))


@dataclass(frozen=True, kw_only=True)
class _Whole:
    gram_DD: Float64Array

    @property
    def trace(self) -> float:
        return float(np.trace(self.gram_DD))

    def times(self, left_RD: Float64Array) -> Float64Array:
        return left_RD @ self.gram_DD

    def add_to(self, sum_DD: Float64Array, factor: float) -> None:
        sum_DD += factor * self.gram_DD


@dataclass(frozen=True, kw_only=True)
class _LowRank:
    factor_DL: Float64Array
    diagonal_D: Float64Array

    @property
    def trace(self) -> float:
        return float(np.square(self.factor_DL).sum() + self.diagonal_D.sum())

    def times(self, left_RD: Float64Array) -> Float64Array:
        result_RD: Float64Array = (left_RD @ self.factor_DL) @ self.factor_DL.T + left_RD * self.diagonal_D
        return result_RD

    def add_to(self, sum_DD: Float64Array, factor: float) -> None:
        sum_DD += (factor * self.factor_DL) @ self.factor_DL.T
        sum_DD[np.diag_indices_from(sum_DD)] += factor * self.diagonal_D


def _read(file: TensorFile, name: str) -> Float64Array:
    narrow_I = np.empty(file.places[name].size, np.float32)
    file.read(name, 0, narrow_I)
    return narrow_I.astype(np.float64)


def _unpacked(half_G: Float64Array) -> Float64Array:
    """The symmetric matrix whose upper triangle by rows is ``half_G``."""
    size = int((np.sqrt(8 * half_G.size + 1) - 1) / 2)
    gram_DD = np.empty((size, size))
    rows, columns = np.triu_indices(size)
    gram_DD[rows, columns] = half_G
    gram_DD[columns, rows] = half_G
    return gram_DD
