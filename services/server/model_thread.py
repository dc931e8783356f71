"""The one thread that runs the model. Sessions hand it work and await the answer."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from prometheus_client import CollectorRegistry

from fednano.errors import NoProgress, ServerBusy
from services.server.metrics import PassKind, ServerMetrics

ResultT = TypeVar("ResultT")


class ModelThread:
    """Runs work in the order it came, one piece at a time, behind a bounded queue."""

    def __init__(
        self, *, threads: int, max_queued: int, timeout_s: float, metrics: ServerMetrics | None = None
    ) -> None:
        self.metrics = metrics or ServerMetrics(CollectorRegistry())
        self._timeout_s = timeout_s
        # One more than may wait: the piece that runs.
        self._places = threading.BoundedSemaphore(max_queued + 1)
        self._executor = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(threads,))

    async def run(
        self,
        work: Callable[[], ResultT],
        *,
        kind: PassKind = "forward",
        tokens: int = 0,
        members: int = 1,
        sequences: int = 1,
    ) -> ResultT:
        """The result of ``work``, or what it raised; counted as a pass of that kind and size.

        Raises ServerBusy at once where the queue is full, NoProgress where the answer takes longer than the bound.
        """
        if not self._places.acquire(blocking=False):
            raise ServerBusy("the model's queue is full: try again in a moment")
        future = self._executor.submit(self.metrics.timed(work, kind, tokens, members, sequences))
        # Also after a caller has gone: the place is taken until the work is done or was never begun.
        future.add_done_callback(lambda _: self._places.release())
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            message = f"the model gave no answer in {self._timeout_s:g} s: send smaller passes, or try again later"
            raise NoProgress(message) from None

    def close(self) -> None:
        """Drops what waits; what runs ends in its own time."""
        self._executor.shutdown(wait=False, cancel_futures=True)
