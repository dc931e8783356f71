"""Krum (Blanchard et al. 2017): the one update that lies nearest to its neighbours becomes the merged adapter.

Of K updates, f of which may be hostile, each scores the sum of its squared distances to its K - f - 2 nearest others;
the least score wins. K must be 2 f + 3 or more. Distances come from the Gram matrix of the updates' differences from
the base adapter, which is summed over blocks of elements: beside one stack of blocks, memory holds that K x K matrix.
Dimensions: K clients · I elements of one block.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fednano.adapter_layout import Float32Array
from fednano.merge.kernels import Float64Array
from fednano.merge.stack import read_stack, stack_blocks
from fednano.merge.streaming import STREAMING, Streaming
from fednano.merge.survey import BaseAdapter, SurveyedUpdate, load_base, survey
from fednano.merge.updates import ClientPart, MergeResult, MergeUpdate

# Scores nearer than this part of the least one are equal: their last bits are the matrix library's, not the clients'.
TIE = 1e-9


def least_krum_updates(hostile_count: int) -> int:
    """The fewest updates among which Krum can tell so many hostile ones."""
    return 2 * hostile_count + 3


def merge_krum(
    updates: Sequence[MergeUpdate],
    base: Path,
    *,
    hostile_count: int,
    max_update_norm: float = 0.0,
    streaming: Streaming = STREAMING,
) -> MergeResult:
    """The chosen client's adapter, shortened where it is longer than ``max_update_norm``.

    Raises ValueError for fewer updates than ``least_krum_updates``. Of equal scores the first client by name wins.
    """
    if len(updates) < least_krum_updates(hostile_count):
        needed = least_krum_updates(hostile_count)
        raise ValueError(f"Krum needs {needed} updates against {hostile_count} hostile ones, not {len(updates)}")
    base_adapter = load_base(base)
    surveyed = survey(updates, base_adapter, max_update_norm, streaming)
    scores_K = _scores(_gram(surveyed, base_adapter, streaming), len(updates) - hostile_count - 2)
    chosen = int(np.argmax(scores_K <= scores_K.min() * (1 + TIE)))
    return MergeResult(
        tensors=_tensors(surveyed[chosen], base_adapter, streaming),
        parts={
            one.client: ClientPart(
                share=1.0 if index == chosen else 0.0, update_norm=one.update_norm, is_clipped=one.is_clipped
            )
            for index, one in enumerate(surveyed)
        },
    )


def _gram(updates: Sequence[SurveyedUpdate], base: BaseAdapter, streaming: Streaming) -> Float64Array:
    """[K, K]: the products of the clients' differences from the base adapter."""
    gram_KK = np.zeros((len(updates), len(updates)), np.float64)
    for block in stack_blocks(base, len(updates), streaming):
        base_I = base.flat[block.tensor][block.start : block.stop]
        moved_KI = np.subtract(read_stack(updates, base, block), base_I, dtype=np.float64)
        gram_KK += moved_KI @ moved_KI.T
    return gram_KK


def _scores(gram_KK: Float64Array, neighbour_count: int) -> Float64Array:
    squares_K = np.diagonal(gram_KK)
    distances_KK = np.maximum(squares_K[:, None] + squares_K[None, :] - 2 * gram_KK, 0.0)
    # Nobody is its own neighbour.
    np.fill_diagonal(distances_KK, np.inf)
    scores_K: Float64Array = np.sort(distances_KK, axis=1)[:, :neighbour_count].sum(axis=1)
    return scores_K


def _tensors(update: SurveyedUpdate, base: BaseAdapter, streaming: Streaming) -> dict[str, Float32Array]:
    places = base.file.places
    flat = {name: np.empty(place.size, np.float32) for name, place in places.items()}
    for block in stack_blocks(base, 1, streaming):
        flat[block.tensor][block.start : block.stop] = read_stack([update], base, block)[0]
    return {name: flat[name].reshape(place.shape) for name, place in sorted(places.items())}
