"""The same block of every client's adapter side by side, for merges that must see all values of an element at once.

Dimensions: K clients, sorted by name · I elements of one block.
"""

from collections.abc import Sequence

import numpy as np

from fednano.adapter_layout import Float32Array
from fednano.merge.streaming import Block, Streaming, blocks
from fednano.merge.survey import BaseAdapter, SurveyedUpdate

# Two float64 copies of a block are the most that a merge makes of its stack, beside the stack itself.
STACKED_BYTES_PER_ELEMENT = 20
SMALLEST_BLOCK_ELEMENTS = 64


def stack_blocks(base: BaseAdapter, client_count: int, streaming: Streaming) -> list[Block]:
    """All elements, in blocks so small that all clients' stay within the budget of one thread."""
    fitting = streaming.stack_bytes // (STACKED_BYTES_PER_ELEMENT * client_count)
    return blocks(base.file.places, max(SMALLEST_BLOCK_ELEMENTS, min(fitting, streaming.block_elements)))


def read_stack(updates: Sequence[SurveyedUpdate], base: BaseAdapter, block: Block) -> Float32Array:
    """[K, I]: what each client sent, or would have sent had its update been no longer than allowed."""
    theta_KI = np.empty((len(updates), block.size), np.float32)
    base_I = base.flat[block.tensor][block.start : block.stop]
    for update, theta_I in zip(updates, theta_KI, strict=True):
        update.adapter.read(block.tensor, block.start, theta_I)
        if update.is_clipped:
            theta_I[:] = base_I + update.clip * np.subtract(theta_I, base_I, dtype=np.float64)
    return theta_KI
