"""The first look at every update: how far it is from the base adapter and how much Fisher information it brings.

Dimensions: I the flattened elements of one tensor · L the lanes of a sum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fednano.adapter_layout import Float32Array
from fednano.merge.fisher_source import FisherSource, fisher_source
from fednano.merge.kernels import LANES, Float64Array, add_squared_differences, add_sums
from fednano.merge.shares import FisherWeighting
from fednano.merge.streaming import Streaming, blocks, on_threads
from fednano.merge.tensor_file import TensorFile, open_tensor_file
from fednano.merge.updates import MergeUpdate, in_merge_order

# What a thread reads at a time. The order of a survey's sums depends on it, so it is no setting.
READ_ELEMENTS = 64 * LANES
AS_SENT = FisherWeighting()


@dataclass(frozen=True, kw_only=True)
class BaseAdapter:
    """The adapter that the round started from: its file's layout, and its flattened tensors, wide as the sums are."""

    file: TensorFile
    flat: Mapping[str, Float64Array]


@dataclass(frozen=True, kw_only=True)
class SurveyedUpdate:
    """An update, opened, with the sums that decide its weight."""

    client: str
    example_count: int
    adapter: TensorFile
    fisher: FisherSource | None
    # NaN where the survey left it to the merge.
    update_norm: float
    # What the difference from the base adapter is multiplied by, so that it is no longer than allowed; else 1.
    clip: float
    fisher_sums: Mapping[str, float]
    fisher_norm: float

    @property
    def has_norm(self) -> bool:
        return not math.isnan(self.update_norm)

    @property
    def is_clipped(self) -> bool:
        return self.clip < 1.0


def load_base(path: Path) -> BaseAdapter:
    file = open_tensor_file(path)
    flat: dict[str, Float64Array] = {}
    for name, place in file.places.items():
        narrow_I = np.empty(place.size, np.float32)
        file.read(name, 0, narrow_I)
        flat[name] = narrow_I.astype(np.float64)
    return BaseAdapter(file=file, flat=flat)


def survey(
    updates: Sequence[MergeUpdate],
    base: BaseAdapter,
    max_update_norm: float,
    streaming: Streaming,
    *,
    leaves_norms: bool = False,
    weighting: FisherWeighting = AS_SENT,
) -> list[SurveyedUpdate]:
    """Reads every file once; sorted by client name. ``max_update_norm`` 0 clips nothing.

    ``leaves_norms``: adapters are read only where clipping needs their norms. ``weighting`` decides what is read of
    Fisher information.
    """
    needs_norms = max_update_norm > 0 or not leaves_norms
    ordered = in_merge_order(updates)
    # Neighbours share a thread, and with it a thread's buffers.
    size = -(-len(ordered) // streaming.threads)
    shares = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    surveyed = on_threads(
        lambda share: _survey_some(share, base, max_update_norm, needs_norms, weighting), shares, streaming.threads
    )
    return [one for some in surveyed for one in some]


def _survey_some(
    updates: Sequence[MergeUpdate],
    base: BaseAdapter,
    max_update_norm: float,
    needs_norms: bool,
    weighting: FisherWeighting,
) -> list[SurveyedUpdate]:
    read_I = np.empty(READ_ELEMENTS, np.float32)
    return [_survey_one(update, base, max_update_norm, needs_norms, weighting, read_I) for update in updates]


def _survey_one(
    update: MergeUpdate,
    base: BaseAdapter,
    max_update_norm: float,
    needs_norms: bool,
    weighting: FisherWeighting,
    read_I: Float32Array,
) -> SurveyedUpdate:
    adapter = _open_alike(update.adapter, base)
    update_norm = _update_norm(adapter, base, read_I) if needs_norms else math.nan
    fisher = None if update.fisher is None else fisher_source(_open_alike(update.fisher, base), weighting)
    sums, norm = ({}, 1.0) if fisher is None else _fisher_sums(fisher, base, read_I)
    return SurveyedUpdate(
        client=update.client,
        example_count=update.example_count,
        adapter=adapter,
        fisher=fisher,
        update_norm=update_norm,
        clip=max_update_norm / update_norm if 0 < max_update_norm < update_norm else 1.0,
        fisher_sums=sums,
        fisher_norm=norm,
    )


def _open_alike(path: Path, base: BaseAdapter) -> TensorFile:
    file = open_tensor_file(path)
    if {name: place.shape for name, place in file.places.items()} != {
        name: place.shape for name, place in base.file.places.items()
    }:
        raise ValueError(f"{path} has other tensors than the base adapter {base.file.path}")
    return file


def _update_norm(adapter: TensorFile, base: BaseAdapter, read_I: Float32Array) -> float:
    squares_L = np.zeros(LANES, np.float64)
    for block in blocks(adapter.places, READ_ELEMENTS):
        theta_I = read_I[: block.size]
        adapter.read(block.tensor, block.start, theta_I)
        add_squared_differences(theta_I, base.flat[block.tensor][block.start : block.stop], squares_L)
    return math.sqrt(squares_L.sum())


def _fisher_sums(fisher: FisherSource, base: BaseAdapter, read_I: Float32Array) -> tuple[dict[str, float], float]:
    """The sum of each tensor, and the L2 norm over all. float64 holds both for any finite float32 values."""
    places = base.file.places
    sums = {name: np.zeros(LANES, np.float64) for name in sorted(places)}
    squares_L = np.zeros(LANES, np.float64)
    for block in blocks(places, READ_ELEMENTS):
        fisher_I = read_I[: block.size]
        fisher.read(block.tensor, block.start, fisher_I)
        add_sums(fisher_I, sums[block.tensor], squares_L)
    return {name: float(sums_L.sum()) for name, sums_L in sums.items()}, math.sqrt(squares_L.sum())
