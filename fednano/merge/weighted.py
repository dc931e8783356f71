"""Fisher merging (Eq. 1 of the paper) and FedAvg, which is Eq. 1 with F = 1.

    theta_i = sum_k w_k F_ki theta_ki / sum_k w_k F_ki,   w_k = n_k / sum n

n_k is how many examples the client says it trained on; FedAvg weighs by nothing else, and has no cap. Sums run in
float64 over the clients sorted by name, so neither the order in which updates came nor the number of threads changes a
bit of the result. In memory are the base adapter, the merged one, and each thread's block.
Dimensions: I the flattened elements of one block · L the lanes of a sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fednano.adapter_layout import Float32Array
from fednano.merge.kernels import LANES, add_alike, add_by_fisher, add_squared_differences
from fednano.merge.shares import FisherWeighting, TensorWeight, tensor_weights
from fednano.merge.streaming import STREAMING, Block, Streaming, blocks, on_threads
from fednano.merge.survey import BaseAdapter, SurveyedUpdate, load_base, survey
from fednano.merge.updates import ClientPart, MergeResult, MergeUpdate

# Of each tensor, how much is looked at to tell how many clients decide a parameter: of small ones all.
STRETCHES = 8
STRETCH_ELEMENTS = 1024


@dataclass(frozen=True, kw_only=True)
class _Weighed:
    """An update with its w_k, its weight in each tensor by name, and its mass before floor and cap."""

    update: SurveyedUpdate
    client_weight: float
    weights: dict[str, TensorWeight]
    fisher_mass: float


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
    surveyed = survey(updates, base_adapter, max_update_norm, streaming, leaves_norms=True, weighting=weighting)
    weighed = _weighed(surveyed, base_adapter, weighting)
    places = base_adapter.file.places
    flat = {name: np.empty(place.size, np.float32) for name, place in places.items()}

    def merge_block(block: Block) -> list[float]:
        flat[block.tensor][block.start : block.stop], squares = _merge_block(block, weighed, base_adapter)
        return squares

    squares = on_threads(merge_block, blocks(places, streaming.block_elements), streaming.threads)
    norms = [math.sqrt(math.fsum(of_client)) for of_client in zip(*squares, strict=True)]
    total_mass = math.fsum(one.fisher_mass for one in weighed)
    return MergeResult(
        tensors={name: flat[name].reshape(place.shape) for name, place in sorted(places.items())},
        parts={
            one.update.client: _part(one, base_adapter, norm, total_mass)
            for one, norm in zip(weighed, norms, strict=True)
        },
        effective_clients=None if surveyed[0].fisher is None else _effective_clients(weighed, base_adapter),
    )


def _weighed(updates: Sequence[SurveyedUpdate], base: BaseAdapter, weighting: FisherWeighting) -> list[_Weighed]:
    total = sum(update.example_count for update in updates)
    client_weights = [update.example_count / total for update in updates]
    scales = [1.0 / one.fisher_norm if weighting.normalize_l2 and one.fisher_norm > 0 else 1.0 for one in updates]
    weighed = [
        _Weighed(update=one, client_weight=w, weights={}, fisher_mass=w * scale * math.fsum(one.fisher_sums.values()))
        for one, w, scale in zip(updates, client_weights, scales, strict=True)
    ]
    for name, place in base.file.places.items():
        if updates[0].fisher is None:
            weights = [TensorWeight(factor=w, added=0.0, share=w, is_capped=False) for w in client_weights]
        else:
            sums = [update.fisher_sums[name] for update in updates]
            weights = tensor_weights(sums, scales, client_weights, place.size, weighting)
        for one, weight in zip(weighed, weights, strict=True):
            one.weights[name] = weight
    return weighed


def _part(one: _Weighed, base: BaseAdapter, seen_norm: float, total_mass: float) -> ClientPart:
    sizes = {name: place.size for name, place in base.file.places.items()}
    return ClientPart(
        share=sum(one.weights[name].share * size for name, size in sizes.items()) / sum(sizes.values()),
        update_norm=one.update.update_norm if one.update.has_norm else seen_norm,
        is_clipped=one.update.is_clipped,
        capped_tensor_count=sum(weight.is_capped for weight in one.weights.values()),
        fisher_share=one.fisher_mass / total_mass if total_mass > 0 else None,
    )


def _effective_clients(weighed: Sequence[_Weighed], base: BaseAdapter) -> float:
    """The mean of 1 / sum of squared shares over the parameters, of large tensors over some of them."""
    stretches = [
        Block(tensor=name, start=start, stop=min(start + STRETCH_ELEMENTS, place.size))
        for name, place in sorted(base.file.places.items())
        for start in range(0, place.size, max(STRETCH_ELEMENTS, place.size // STRETCHES))
    ]
    means = [_effective_in(stretch, weighed) for stretch in stretches]
    return float(np.average(means, weights=[stretch.size for stretch in stretches]))


def _effective_in(stretch: Block, weighed: Sequence[_Weighed]) -> float:
    """The mean over the stretch's elements; where nobody has any information, w_k takes the weight's place."""
    weight_KI = np.empty((len(weighed), stretch.size))
    fisher_I = np.empty(stretch.size, np.float32)
    for one, weight_I in zip(weighed, weight_KI, strict=True):
        assert one.update.fisher is not None
        one.update.fisher.read(stretch.tensor, stretch.start, fisher_I)
        weight = one.weights[stretch.tensor]
        weight_I[:] = fisher_I * np.float64(weight.factor) + weight.added
    total_I = weight_KI.sum(axis=0)
    share_KI = np.empty_like(weight_KI)
    share_KI[:] = [[one.client_weight] for one in weighed]
    np.divide(weight_KI, total_I, out=share_KI, where=total_I > 0)
    return float((1.0 / np.square(share_KI).sum(axis=0)).mean())


class _BlockSums:
    """The running sums of one block, and one thread's buffers to add a client to them."""

    def __init__(self, block: Block, base: BaseAdapter) -> None:
        self._block, self._base_I = block, base.flat[block.tensor][block.start : block.stop]
        self._theta_I, self._fisher_I = (np.empty(block.size, np.float32) for _ in range(2))
        self._squares_L = np.empty(LANES, np.float64)
        self.numerator_I, self.denominator_I = (np.zeros(block.size, np.float64) for _ in range(2))
        # What all elements of the denominator have in common where F = 1.
        self._constant = 0.0

    def add(self, update: SurveyedUpdate, weight: TensorWeight) -> float:
        """Returns the sum of the squares of what the client changed, or 0 where the survey has it."""
        theta_I, base_I = self._theta_I, self._base_I
        update.adapter.read(self._block.tensor, self._block.start, theta_I)
        if update.fisher is None:
            self._constant += weight.factor
            add_alike(theta_I, base_I, update.clip, weight.factor, self.numerator_I)
        else:
            update.fisher.read(self._block.tensor, self._block.start, self._fisher_I)
            sums = (self.numerator_I, self.denominator_I)
            add_by_fisher(theta_I, self._fisher_I, base_I, update.clip, weight.factor, weight.added, *sums)
        return 0.0 if update.has_norm else self._squares()

    def _squares(self) -> float:
        self._squares_L.fill(0.0)
        add_squared_differences(self._theta_I, self._base_I, self._squares_L)
        return float(self._squares_L.sum())

    def merged(self) -> tuple[Float32Array, bool]:
        """The weighted mean, and whether every element had any weight; those that had none are 0."""
        if self._constant:
            self.denominator_I.fill(self._constant)
        known_I = self.denominator_I > 0
        np.divide(self.numerator_I, self.denominator_I, out=self.numerator_I, where=known_I)
        return self.numerator_I.astype(np.float32), bool(known_I.all())


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
