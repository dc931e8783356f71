"""Fisher merging (Eq. 1 of the paper) and FedAvg, which is Eq. 1 with F = 1.

    theta_i = sum_k w_k F_ki theta_ki / sum_k w_k F_ki,   w_k = n_k / sum n

n_k is how many examples the client says it trained on; FedAvg weighs by nothing else, and has no cap. Sums run in
float64 over the clients sorted by name, so neither the order in which updates came nor the number of threads changes a
bit of the result. In memory are the base adapter, the merged one, and each thread's block.
Dimensions: I the flattened elements of one block · S those of one strip.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fednano.adapter_layout import Float32Array
from fednano.merge.shares import FisherWeighting, TensorWeight, tensor_weights
from fednano.merge.streaming import STREAMING, STRIP_ELEMENTS, Block, Streaming, blocks, on_threads, strips
from fednano.merge.survey import BaseAdapter, Float64Array, SurveyedUpdate, load_base, survey
from fednano.merge.updates import ClientPart, MergeResult, MergeUpdate


@dataclass(frozen=True, kw_only=True)
class _Weighed:
    """An update with its w_k and its weight in each tensor by name."""

    update: SurveyedUpdate
    client_weight: float
    weights: dict[str, TensorWeight]


def merge_weighted(
    updates: Sequence[MergeUpdate],
    base: Path,
    *,
    weighting: FisherWeighting,
    max_update_norm: float = 0.0,
    streaming: Streaming = STREAMING,
) -> MergeResult:
    """Eq. 1 over all updates, which all have Fisher information or none. Reads Fisher information twice.

    ``max_update_norm`` shortens longer updates first; 0 does not. Where no client has any F, the w_k-weighted mean
    takes the place of 0 / 0.
    """
    base_adapter = load_base(base)
    surveyed = survey(updates, base_adapter, max_update_norm, streaming, leaves_norms=True)
    weighed = _weighed(surveyed, base_adapter, weighting)
    places = base_adapter.file.places
    flat = {name: np.empty(place.size, np.float32) for name, place in places.items()}

    def merge_block(block: Block) -> list[float]:
        flat[block.tensor][block.start : block.stop], squares = _merge_block(block, weighed, base_adapter)
        return squares

    squares = on_threads(merge_block, blocks(places, streaming.block_elements), streaming.threads)
    norms = [math.sqrt(math.fsum(of_client)) for of_client in zip(*squares, strict=True)]
    return MergeResult(
        tensors={name: flat[name].reshape(place.shape) for name, place in sorted(places.items())},
        parts={one.update.client: _part(one, base_adapter, norm) for one, norm in zip(weighed, norms, strict=True)},
    )


def _weighed(updates: Sequence[SurveyedUpdate], base: BaseAdapter, weighting: FisherWeighting) -> list[_Weighed]:
    total = sum(update.example_count for update in updates)
    client_weights = [update.example_count / total for update in updates]
    weighed = [
        _Weighed(update=one, client_weight=w, weights={}) for one, w in zip(updates, client_weights, strict=True)
    ]
    scales = [1.0 / one.fisher_norm if weighting.normalize_l2 and one.fisher_norm > 0 else 1.0 for one in updates]
    for name, place in base.file.places.items():
        if updates[0].fisher is None:
            weights = [TensorWeight(factor=w, added=0.0, share=w, is_capped=False) for w in client_weights]
        else:
            sums = [update.fisher_sums[name] for update in updates]
            weights = tensor_weights(sums, scales, client_weights, place.size, weighting)
        for one, weight in zip(weighed, weights, strict=True):
            one.weights[name] = weight
    return weighed


def _part(one: _Weighed, base: BaseAdapter, seen_norm: float) -> ClientPart:
    sizes = {name: place.size for name, place in base.file.places.items()}
    return ClientPart(
        share=sum(one.weights[name].share * size for name, size in sizes.items()) / sum(sizes.values()),
        update_norm=one.update.update_norm if one.update.has_norm else seen_norm,
        is_clipped=one.update.is_clipped,
        capped_tensor_count=sum(weight.is_capped for weight in one.weights.values()),
    )


class _BlockSums:
    """The running sums of one block, and one thread's buffers to add a client to them."""

    def __init__(self, block: Block, base: BaseAdapter) -> None:
        self._block, self._base_I = block, base.flat[block.tensor][block.start : block.stop]
        self._theta_I, self._fisher_I = (np.empty(block.size, np.float32) for _ in range(2))
        self._theta_S, self._weight_S = (np.empty(STRIP_ELEMENTS, np.float64) for _ in range(2))
        self.numerator_I, self.denominator_I = (np.zeros(block.size, np.float64) for _ in range(2))
        # What all elements of the denominator have in common where F = 1.
        self._constant = 0.0

    def add(self, update: SurveyedUpdate, weight: TensorWeight) -> float:
        """Returns the sum of the squares of what the client changed, or 0 where the survey has it."""
        squares = 0.0
        update.adapter.read(self._block.tensor, self._block.start, self._theta_I)
        if update.fisher is None:
            self._constant += weight.factor
        else:
            update.fisher.read(self._block.tensor, self._block.start, self._fisher_I)
        for strip in strips(self._block.size):
            theta_S = self._widened(strip, update.clip)
            if not update.has_norm:
                squares += self._squares(strip, theta_S)
            if update.fisher is None:
                np.multiply(theta_S, weight.factor, out=theta_S)
            else:
                np.multiply(theta_S, self._weighed(strip, weight), out=theta_S)
            numerator_S = self.numerator_I[strip]
            np.add(numerator_S, theta_S, out=numerator_S)
        return squares

    def _squares(self, strip: slice, theta_S: Float64Array) -> float:
        moved_S = np.subtract(theta_S, self._base_I[strip], out=self._weight_S[: theta_S.size])
        return float(np.multiply(moved_S, moved_S, out=moved_S).sum())

    def merged(self) -> tuple[Float32Array, bool]:
        """The weighted mean, and whether every element had any weight; those that had none are 0."""
        if self._constant:
            self.denominator_I.fill(self._constant)
        known_I = self.denominator_I > 0
        np.divide(self.numerator_I, self.denominator_I, out=self.numerator_I, where=known_I)
        return self.numerator_I.astype(np.float32), bool(known_I.all())

    def _widened(self, strip: slice, clip: float) -> Float64Array:
        """The strip of theta, where need be pulled towards the base adapter."""
        theta_S, base_S = self._theta_S[: strip.stop - strip.start], self._base_I[strip]
        np.copyto(theta_S, self._theta_I[strip])
        if clip < 1.0:
            np.subtract(theta_S, base_S, out=theta_S)
            np.multiply(theta_S, clip, out=theta_S)
            np.add(theta_S, base_S, out=theta_S)
        return theta_S

    def _weighed(self, strip: slice, weight: TensorWeight) -> Float64Array:
        """The strip of w_k F_k, which it adds to the denominator."""
        weight_S, denominator_S = self._weight_S[: strip.stop - strip.start], self.denominator_I[strip]
        np.copyto(weight_S, self._fisher_I[strip])
        np.multiply(weight_S, weight.factor, out=weight_S)
        if weight.added:
            np.add(weight_S, weight.added, out=weight_S)
        np.add(denominator_S, weight_S, out=denominator_S)
        return weight_S


def _merge_block(block: Block, weighed: Sequence[_Weighed], base: BaseAdapter) -> tuple[Float32Array, list[float]]:
    """The merged block, and of each client what ``_BlockSums.add`` returns."""
    sums = _BlockSums(block, base)
    squares = [sums.add(one.update, one.weights[block.tensor]) for one in weighed]
    merged_I, is_known = sums.merged()
    if not is_known:
        np.copyto(merged_I, _mean(block, weighed, base), where=sums.denominator_I <= 0)
    return merged_I, squares


def _mean(block: Block, weighed: Sequence[_Weighed], base: BaseAdapter) -> Float32Array:
    """The block's mean weighted by w_k alone."""
    sums = _BlockSums(block, base)
    for one in weighed:
        weight = TensorWeight(factor=0.0, added=one.client_weight, share=0.0, is_capped=False)
        sums.add(one.update, weight)
    return sums.merged()[0]
