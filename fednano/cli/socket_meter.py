"""A relay between clients and a service that counts what passes its sockets: framing, health checks and all."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

BLOCK_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class SocketBytes:
    """What TCP carried, without its own headers: ``up`` from clients, ``down`` to them."""

    up: int
    down: int


class SocketMeter:
    """As a context it listens at ``address`` and passes everything on to ``target``, which need not be there yet."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._up = self._down = 0

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def counted(self) -> SocketBytes:
        """Since the meter began."""
        return SocketBytes(up=self._up, down=self._down)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # In a task of our own: asyncio's, of a coroutine, says with a trace that it was cancelled (Python 3.11).
        connection = asyncio.create_task(self._pass_on(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A service that is away refuses: closing tells the client the same.
            with suppress(OSError):
                await self._join(reader, writer, *await asyncio.open_connection(self._host, self._port))
        finally:
            writer.close()

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        onward_reader: asyncio.StreamReader,
        onward_writer: asyncio.StreamWriter,
    ) -> None:
        """Until both ends have closed."""
        try:
            await asyncio.gather(
                self._relay(reader, onward_writer, is_up=True), self._relay(onward_reader, writer, is_up=False)
            )
        finally:
            onward_writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_up: bool) -> None:
        with suppress(OSError):
            while block := await reader.read(BLOCK_BYTES):
                if is_up:
                    self._up += len(block)
                else:
                    self._down += len(block)
                writer.write(block)
                await writer.drain()
            # This end has said all; the other one may not have.
            writer.write_eof()
