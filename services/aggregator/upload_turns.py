"""One upload at a time for a round and client: a newer one takes the turn, the older one is told and ends first.

The newer one wins because it is the one with a live client behind it: the older may hang on a connection that broke.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fednano.errors import NoProgress, ServerBusy
from fednano.names import ClientName, RoundName
from fednano.v1 import aggregator_service_pb2 as pb

Frames = AsyncIterator[pb.UploadUpdateRequest]
FRAME_TIMEOUT_S = 30.0
# What ends before a newer upload begins is at most one write, or the checks and the recording of a whole update.
TURN_TIMEOUT_S = 60.0
# Uploads that are read at once, with a frame of 1 MiB each in memory; the others wait on their clients' side.
MAX_READ_AT_ONCE = 32


class Turn:
    """What one upload reads its frames through. Not for use outside the event loop."""

    def __init__(self, *, is_first: bool) -> None:
        # Whether nothing else was under way for the same round and client.
        self.is_first = is_first
        self.ended = asyncio.Event()
        self._is_superseded = False
        self._wait: asyncio.Timeout | None = None

    def supersede(self) -> None:
        """Ends the wait for a frame under way, or the next one, with ServerBusy."""
        if self._wait is not None and not self._wait.expired():
            self._wait.reschedule(asyncio.get_running_loop().time())
        self._is_superseded = True

    async def next_frame(self, frames: Frames) -> pb.UploadUpdateRequest | None:
        """None at the end of the stream. Raises NoProgress, or ServerBusy where a newer upload has the turn."""
        self._refuse_superseded()
        try:
            async with asyncio.timeout(FRAME_TIMEOUT_S) as self._wait:
                return await anext(frames, None)
        except TimeoutError:
            self._refuse_superseded()
            raise NoProgress(f"no frame of the update for {FRAME_TIMEOUT_S:g} s: go on with it") from None
        finally:
            self._wait = None

    def _refuse_superseded(self) -> None:
        if self._is_superseded:
            raise ServerBusy("a newer upload of the same client for the same round goes on instead", retry_after_s=1.0)


class UploadTurns:
    """The uploads under way. Bounded: a round has so many clients, and each one turn that is not told to end."""

    def __init__(self) -> None:
        self._turns: dict[tuple[RoundName, ClientName], list[Turn]] = {}
        self._room = asyncio.Semaphore(MAX_READ_AT_ONCE)

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Begins once fewer than ``MAX_READ_AT_ONCE`` uploads are being read. Raises ServerBusy."""
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                await self._room.acquire()
        except TimeoutError:
            raise ServerBusy(f"{MAX_READ_AT_ONCE} updates are coming in already", retry_after_s=5.0) from None
        try:
            yield
        finally:
            self._room.release()

    @asynccontextmanager
    async def take(self, name: RoundName, client: ClientName) -> AsyncIterator[Turn]:
        """Begins once every older upload of the client for the round has ended. Raises ServerBusy."""
        turns = self._turns.setdefault((name, client), [])
        older = list(turns)
        turn = Turn(is_first=not older)
        turns.append(turn)
        try:
            await _end_all(older)
            yield turn
        finally:
            turn.ended.set()
            turns.remove(turn)
            if not turns:
                self._turns.pop((name, client), None)


async def _end_all(older: Sequence[Turn]) -> None:
    for turn in older:
        turn.supersede()
    try:
        async with asyncio.timeout(TURN_TIMEOUT_S):
            for turn in older:
                await turn.ended.wait()
    except TimeoutError:
        message = "an earlier upload of the same client for the same round is still being recorded"
        raise ServerBusy(message, retry_after_s=5.0) from None
