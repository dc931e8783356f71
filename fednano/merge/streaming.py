"""How a merge goes through files: in blocks, on a few threads, with memory that does not grow with the clients.

A block is what one thread reads and sums at a time, so small that it stays near a core. Elements never meet across
blocks, so neither their size nor the number of threads changes a bit of what is merged.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from fednano.merge.tensor_file import TensorPlace

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """``block_elements`` for merges that add client after client; ``stack_bytes`` for those that see all at once."""

    block_elements: int = 64 * 1024
    # Bounds, per thread, the elements of all clients that lie side by side.
    stack_bytes: int = 32 * 1024 * 1024
    threads: int = min(4, os.cpu_count() or 1)


STREAMING = Streaming()


@dataclass(frozen=True, kw_only=True)
class Block:
    """Elements ``start`` to ``stop`` of a flattened tensor."""

    tensor: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def blocks(places: Mapping[str, TensorPlace], block_elements: int) -> list[Block]:
    """All elements of all tensors, in the order of the tensors' names."""
    return [
        Block(tensor=name, start=start, stop=min(start + block_elements, places[name].size))
        for name in sorted(places)
        for start in range(0, places[name].size, block_elements)
    ]


def on_threads(work: Callable[[Item], Outcome], items: Sequence[Item], threads: int) -> list[Outcome]:
    """The outcomes in the order of the items. Kernels, NumPy and reads let go of the interpreter's lock."""
    with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
        return list(pool.map(work, items))
