"""How a merge goes through files: in blocks, on a few threads, with memory that does not grow with the clients.

A block is what one thread reads and sums at a time; within it, arithmetic goes in strips that stay near a core.
Elements never meet across blocks or strips, so neither their size nor the number of threads changes a bit.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from fednano.merge.tensor_file import TensorPlace

# Shorter ones cost more in threads that wait for one another to enter the interpreter, longer ones more in memory.
STRIP_ELEMENTS = 64 * 1024

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """``block_elements`` for merges that add client after client; ``stack_bytes`` for those that see all at once."""

    block_elements: int = 256 * 1024
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


def strips(size: int) -> Iterator[slice]:
    return (slice(start, min(start + STRIP_ELEMENTS, size)) for start in range(0, size, STRIP_ELEMENTS))


def on_threads(work: Callable[[Item], Outcome], items: Sequence[Item], threads: int) -> list[Outcome]:
    """The outcomes in the order of the items. NumPy lets go of the interpreter's lock while it computes and reads."""
    with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
        return list(pool.map(work, items))
