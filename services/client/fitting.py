"""How many examples at a time fit the device's memory: as many as are asked for, until it says no."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from fednano.errors import DeviceMemoryFull
from fednano.telemetry import get_logger

log = get_logger("client.memory")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class FittingSize:
    """Of one kind of work. What did not fit once is not tried again in this process."""

    def __init__(self, what: str, before_retry: Callable[[], None] = lambda: None) -> None:
        """``before_retry`` lets go of what else holds memory, here or elsewhere."""
        self._what = what
        self._before_retry = before_retry
        self.most: int | None = None

    def run(self, count: int, attempt: Callable[[int], ResultT]) -> ResultT:
        """``attempt(size)`` does the work on ``count`` examples, at most ``size`` at a time, from its beginning.

        Called again with half the size where it runs out of memory. Raises DeviceMemoryFull where one is too much.
        """
        while True:
            size = min(count, self.most or count)
            try:
                return attempt(size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Out of the except block: the error's frames hold what filled the memory.
            if size <= 1:
                raise DeviceMemoryFull(
                    f"{self._what}: the device's memory does not suffice for a single example: give --device cpu, or"
                    " --encoder-type bfloat16 where it is the encoder; other processes may hold some of it too",
                    what=self._what,
                )
            self.most = (size + 1) // 2
            log.warning("out_of_memory", what=self._what, examples=size, next=self.most)
            self._before_retry()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def pieces(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """The items in their order, at most ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def is_out_of_memory(error: RuntimeError) -> bool:
    """MPS has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)
