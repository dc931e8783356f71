"""Merging clients' adapters into one: Fisher merging (Eq. 1 of the paper) and FedAvg, which is Eq. 1 with F = 1.

    theta_i = sum_k w_k F_ki theta_ki / sum_k w_k F_ki,   w_k = n_k / sum n

Sums run in float64 over the clients sorted by name, so the order in which updates came changes no bit of the result.
One tensor of one client is in memory at a time, besides the running sums of that tensor.
Dimensions: I the flattened elements of one tensor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from fednano.adapter_layout import Float32Array
from fednano.merge.updates import MergeUpdate

Float64Array = NDArray[np.float64]
BLOCK_ELEMENTS = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class _Weighed:
    """An update with its w_k and the factor that normalizes its Fisher information."""

    update: MergeUpdate
    weight: float
    fisher_scale: float


def merge_adapters(
    updates: Sequence[MergeUpdate], *, normalize_l2: bool = False, floor: float = 0.0
) -> dict[str, Float32Array]:
    """The merged adapter, by tensor name.

    ``normalize_l2`` divides each client's F by its L2 norm over all tensors. ``floor`` adds that fraction of the mean
    over clients and elements of the (normalized) tensor to every F. Where no client has any F, the w_k-weighted mean
    takes the place of 0 / 0.
    """
    if not updates or any(update.example_count < 1 for update in updates):
        raise ValueError("merging needs at least one update, each with at least one example")
    total = sum(update.example_count for update in updates)
    weighed = [
        _Weighed(
            update=update,
            weight=update.example_count / total,
            fisher_scale=_inverse_norm(update) if normalize_l2 else 1.0,
        )
        for update in sorted(updates, key=lambda update: update.client)
    ]
    with safe_open(weighed[0].update.adapter, framework="np") as adapter:
        names = sorted(adapter.keys())
    return {name: _merge_tensor(name, weighed, floor) for name in names}


def _merge_tensor(name: str, weighed: Sequence[_Weighed], floor: float) -> Float32Array:
    shape = _read(weighed[0].update.adapter, name).shape
    size = int(np.prod(shape))
    numerator_I, denominator_I, mean_I = (np.zeros(size, np.float64) for _ in range(3))
    added = floor * _mean_fisher(name, weighed) if floor > 0 else 0.0
    for one in weighed:
        theta_I = _read(one.update.adapter, name).reshape(-1)
        fisher_I = None if one.update.fisher is None else _read(one.update.fisher, name).reshape(-1)
        for block in _blocks(size):
            theta_block = theta_I[block].astype(np.float64)
            weight_block = one.weight * (_fisher_block(fisher_I, block, one.fisher_scale) + added)
            numerator_I[block] += weight_block * theta_block
            denominator_I[block] += weight_block
            mean_I[block] += one.weight * theta_block
    known_I = denominator_I > 0
    # In place, and only where there is something to divide by: elsewhere the mean stays.
    np.divide(numerator_I, denominator_I, out=mean_I, where=known_I)
    return mean_I.astype(np.float32).reshape(shape)


def _fisher_block(fisher_I: Float32Array | None, block: slice, scale: float) -> Float64Array | float:
    return 1.0 * scale if fisher_I is None else fisher_I[block].astype(np.float64) * scale


def _mean_fisher(name: str, weighed: Sequence[_Weighed]) -> float:
    """Mean of the normalized tensor over clients and elements."""
    total, count = 0.0, 0
    for one in weighed:
        if one.update.fisher is None:
            total, count = total + one.fisher_scale, count + 1
            continue
        fisher_I = _read(one.update.fisher, name).reshape(-1)
        sums = (float(fisher_I[block].astype(np.float64).sum()) for block in _blocks(fisher_I.size))
        total += sum(sums) * one.fisher_scale / max(fisher_I.size, 1)
        count += 1
    return total / count


def _inverse_norm(update: MergeUpdate) -> float:
    """1 / L2 norm of the client's F over all tensors; 1 where all of it is zero, or where it stands for F = 1."""
    if update.fisher is None:
        return 1.0
    squares = 0.0
    with safe_open(update.fisher, framework="np") as fisher:
        for name in sorted(fisher.keys()):
            fisher_I = fisher.get_tensor(name).reshape(-1)
            for block in _blocks(fisher_I.size):
                squares += float(np.square(fisher_I[block].astype(np.float64)).sum())
    return 1.0 / float(np.sqrt(squares)) if squares > 0 else 1.0


def _read(path: Path, name: str) -> Float32Array:
    with safe_open(path, framework="np") as tensors:
        tensor: Float32Array = tensors.get_tensor(name)
    return tensor


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK_ELEMENTS) for start in range(0, size, BLOCK_ELEMENTS))
