"""A TCP proxy whose connections stay open and carry nothing any more, as behind a cable that was pulled."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

BLOCK_BYTES = 1 << 14


class SilentProxy:
    """As a context it listens, and closes all connections at its end."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._tasks: set[asyncio.Task[None]] = set()
        self._speaks = self._answers = True

    async def __aenter__(self) -> "SilentProxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def fall_silent(self) -> None:
        self._speaks = self._answers = False

    def hold_answers(self) -> None:
        """From now on what the target sends is lost; what is sent to it still comes."""
        self._answers = False

    def cut(self) -> None:
        """Ends all connections of today; new ones carry everything."""
        for task in self._tasks:
            task.cancel()
        self._speaks = self._answers = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        onward_reader, onward_writer = await asyncio.open_connection(self._host, int(self._port))
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(
                self._relay(reader, onward_writer, lambda: self._speaks),
                self._relay(onward_reader, writer, lambda: self._answers),
            )
        for end in (onward_writer, writer):
            end.close()

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, speaks: Callable[[], bool]
    ) -> None:
        while block := await reader.read(BLOCK_BYTES):
            if speaks():
                writer.write(block)
                await writer.drain()
