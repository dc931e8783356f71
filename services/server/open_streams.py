"""The streams that are open: bounded in number, and brought to an end in order when the server stops."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from fednano.errors import PeerUnavailable, ServerBusy
from fednano.telemetry import get_logger

log = get_logger("server.streams")
RETRY_AFTER_S = 5.0
# What a stream may take to tell its client, once it was handed back.
LAST_WORDS_S = 2.0


class Stoppable(Protocol):
    """A stream: ``stop`` ends it where its next request is awaited; one that has begun something only ``at_once``."""

    def stop(self, *, at_once: bool) -> None: ...


class OpenStreams:
    """For one event loop."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._streams: set[Stoppable] = set()
        self._ended = asyncio.Event()
        self._stopping = False

    @contextmanager
    def place(self, stream: Stoppable) -> Iterator[None]:
        """Raises ServerBusy where there is no more room, PeerUnavailable where the server stops."""
        if self._stopping:
            raise PeerUnavailable("the server is stopping: ask another one, or this one again in a moment")
        if len(self._streams) >= self._bound:
            message = f"{len(self._streams)} streams are open, which is this server's bound"
            raise ServerBusy(message, retry_after_s=RETRY_AFTER_S)
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)
            self._ended.set()

    async def drain(self, grace_s: float) -> None:
        """Returns when no stream is open, or a moment after ``grace_s`` seconds.

        Steps that were begun are finished until then; everything else is handed back: its client hears that the server
        is not available, and does the step again elsewhere.
        """
        self._stopping = True
        begun = len(self._streams)
        self._stop_all(at_once=False)
        in_time = await self._wait_until_empty(grace_s)
        log.info("drained", streams=begun, handed_back_late=len(self._streams))
        if not in_time:
            self._stop_all(at_once=True)
            await self._wait_until_empty(LAST_WORDS_S)

    def _stop_all(self, *, at_once: bool) -> None:
        for stream in list(self._streams):
            stream.stop(at_once=at_once)

    async def _wait_until_empty(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while self._streams:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True
