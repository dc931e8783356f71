"""What an adapter file holds: "{modality}.down.weight" [R, D] and "{modality}.up.weight" [D, R], float32.

Numpy only: the aggregator knows adapters by their names and shapes, and needs no torch for it.
Dimensions: D hidden size · R rank.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


def adapter_shapes(modalities: Sequence[str], hidden_size: int, rank: int) -> Mapping[str, tuple[int, ...]]:
    """The shape of each tensor, in the order of the tensors' names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for modality in sorted(modalities):
        shapes[f"{modality}.down.weight"] = (rank, hidden_size)
        shapes[f"{modality}.up.weight"] = (hidden_size, rank)
    return shapes


def initial_adapter(modalities: Sequence[str], hidden_size: int, rank: int, seed: int) -> dict[str, Float32Array]:
    """The adapter every run starts from: down ~ N(0, 1/sqrt(D)), up zero, so that it changes nothing yet.

    Drawn from PCG64(seed) in the order of the names, so the same arguments give the same bytes everywhere.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    adapter: dict[str, Float32Array] = {}
    for name, shape in adapter_shapes(modalities, hidden_size, rank).items():
        if name.endswith(".down.weight"):
            adapter[name] = (generator.standard_normal(shape) / np.sqrt(hidden_size)).astype(np.float32)
        else:
            adapter[name] = np.zeros(shape, np.float32)
    return adapter
