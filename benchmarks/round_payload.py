"""What travels in every contestant: 1,048,576 float32 down (an adapter), twice that up (with its Fisher information).

Imported by other virtual environments too: nothing but numpy here. The merge is the least that Fisher merging can be,
for those that have none of their own.
Dimensions: I the elements of one tensor.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]

# Two adapters of rank 64 for a hidden size of 4096, as adapter_layout.adapter_shapes gives them.
HIDDEN_SIZE, RANK = 4096, 64
MODALITIES = ("image", "text")
SHAPES = {
    f"{modality}.{name}.weight": shape
    for modality in MODALITIES
    for name, shape in (("down", (RANK, HIDDEN_SIZE)), ("up", (HIDDEN_SIZE, RANK)))
}
TINY = np.float32(np.finfo(np.float32).tiny)


def initial_adapter() -> list[Float32Array]:
    return [np.zeros(shape, np.float32) for shape in SHAPES.values()]


def update_of(client: int) -> list[Float32Array]:
    """The adapter's tensors, then those of its Fisher information: never negative, as it has to be."""
    generator = np.random.Generator(np.random.PCG64(client))
    return [generator.random(shape, np.float32) for shape in 2 * list(SHAPES.values())]


def make_new(update: Sequence[Float32Array], round_number: int) -> None:
    """Changes each tensor in place, so that no store recognizes it from an earlier round."""
    for tensor in update:
        tensor.flat[0] = round_number


def merge(updates: Sequence[Sequence[Float32Array]]) -> list[Float32Array]:
    """Eq. 1 with equal weights, tensor by tensor, in float32."""
    merged: list[Float32Array] = []
    for index in range(len(SHAPES)):
        numerator_I, denominator_I = np.zeros_like(updates[0][index]), np.zeros_like(updates[0][index])
        for update in updates:
            numerator_I += update[index] * update[index + len(SHAPES)]
            denominator_I += update[index + len(SHAPES)]
        numerator_I /= np.maximum(denominator_I, TINY)
        merged.append(numerator_I)
    return merged
