"""Merges by order (Yin et al. 2018): of each parameter the trimmed mean or the median over the clients.

The trimmed mean drops the t smallest and the t largest of K values and takes the mean of the rest; the median is the
trimmed mean that leaves one value, or the two in the middle. No client's number of examples counts: it is a claim, and
these merges trust none. Values are summed in the order of their size, so no order of clients changes a bit.
Dimensions: K clients, sorted by name · I elements of one block.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fednano.adapter_layout import Float32Array
from fednano.merge.stack import read_stack, stack_blocks
from fednano.merge.streaming import STREAMING, Block, Streaming, on_threads
from fednano.merge.survey import load_base, survey
from fednano.merge.updates import ClientPart, MergeResult, MergeUpdate


def trimmed_count(trim_fraction: float, update_count: int) -> int:
    """How many values the trimmed mean drops at each end."""
    return int(trim_fraction * update_count)


def median_trimmed_count(update_count: int) -> int:
    """How many values the median drops at each end."""
    return (update_count - 1) // 2


def merge_trimmed(
    updates: Sequence[MergeUpdate],
    base: Path,
    *,
    dropped: int,
    max_update_norm: float = 0.0,
    streaming: Streaming = STREAMING,
) -> MergeResult:
    """The mean of each parameter without its ``dropped`` smallest and largest values.

    Raises ValueError where that leaves none. A client's share is its part of all values that were kept.
    """
    if not 0 <= 2 * dropped < len(updates):
        raise ValueError(f"dropping {dropped} values at each end leaves none of {len(updates)}")
    base_adapter = load_base(base)
    surveyed = survey(updates, base_adapter, max_update_norm, streaming)
    places = base_adapter.file.places
    flat = {name: np.empty(place.size, np.float32) for name, place in places.items()}

    def merge_block(block: Block) -> NDArray[np.int64]:
        theta_KI = read_stack(surveyed, base_adapter, block)
        merged_I, kept_K = _trimmed_mean(theta_KI, dropped)
        flat[block.tensor][block.start : block.stop] = merged_I
        return kept_K

    counts = on_threads(merge_block, stack_blocks(base_adapter, len(surveyed), streaming), streaming.threads)
    kept_K = np.sum(counts, axis=0)
    return MergeResult(
        tensors={name: flat[name].reshape(place.shape) for name, place in sorted(places.items())},
        parts={
            one.client: ClientPart(
                share=float(kept / kept_K.sum()), update_norm=one.update_norm, is_clipped=one.is_clipped
            )
            for one, kept in zip(surveyed, kept_K, strict=True)
        },
    )


def _trimmed_mean(theta_KI: Float32Array, dropped: int) -> tuple[Float32Array, NDArray[np.int64]]:
    """The mean of what is left, and how many of its values each client has among them, ties of the ends included."""
    first, last = dropped, len(theta_KI) - dropped - 1
    sorted_IK = np.sort(np.ascontiguousarray(theta_KI.T), axis=1)
    merged_I = sorted_IK[:, first : last + 1].mean(axis=1, dtype=np.float64).astype(np.float32)
    is_kept_KI = (theta_KI >= sorted_IK[:, first]) & (theta_KI <= sorted_IK[:, last])
    return merged_I, is_kept_KI.sum(axis=1)
