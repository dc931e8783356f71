"""A TCP proxy between two services, for connections that stay open and carry nothing any more, or very little."""

import asyncio
from contextlib import suppress

BLOCK_BYTES = 1 << 14


class Proxy:
    """As a context it listens, and closes all connections at its end."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        # Replaced at each freeze: connections hold on to the one that they began with.
        self._frozen = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connection_count = 0
        # Of each direction of each connection; 0 is as fast as it goes.
        self.rate_bytes_s = 0.0

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def freeze(self) -> None:
        """From now on no connection of today carries a byte, and none is closed. New ones are as ever."""
        self._frozen.set()
        self._frozen = asyncio.Event()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connection_count += 1
        frozen = self._frozen
        with suppress(OSError, asyncio.CancelledError):
            onward_reader, onward_writer = await asyncio.open_connection(self._host, self._port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._relay(reader, onward_writer, frozen))
                    group.create_task(self._relay(onward_reader, writer, frozen))
            finally:
                onward_writer.close()
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frozen: asyncio.Event) -> None:
        with suppress(OSError):
            while block := await reader.read(BLOCK_BYTES):
                if frozen.is_set():
                    # For ever: the other end has vanished without a word.
                    await asyncio.Event().wait()
                writer.write(block)
                await writer.drain()
                if self.rate_bytes_s:
                    await asyncio.sleep(len(block) / self.rate_bytes_s)
        if frozen.is_set():
            await asyncio.Event().wait()
        writer.close()
