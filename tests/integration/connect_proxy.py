"""An HTTP proxy as firewalls have it: CONNECT alone, and names that only the proxy knows."""

import asyncio
import base64
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

BLOCK_BYTES = 1 << 16
START_S = 10.0


@dataclass(frozen=True, kw_only=True)
class ConnectProxy:
    """Where it listens, and what it was asked for, in order: the host:port of each CONNECT."""

    address: str
    asked: list[str] = field(default_factory=list)
    # Of the callers that had no right.
    turned_away: list[str] = field(default_factory=list)


@contextmanager
def connect_proxy(places: Mapping[str, str], caller: str = "") -> Iterator[ConnectProxy]:
    """Serves in a thread of its own while the block runs.

    ``places`` is what each host:port really is, ``caller`` a name:password that is asked for.
    """
    loop, ready = asyncio.new_event_loop(), threading.Event()
    proxy = ConnectProxy(address="")

    async def serve() -> None:
        nonlocal proxy
        tunnels = _Tunnels(places, caller, proxy)
        server = await asyncio.start_server(tunnels.take, "127.0.0.1", 0)
        proxy = ConnectProxy(
            address=f"127.0.0.1:{server.sockets[0].getsockname()[1]}", asked=proxy.asked, turned_away=proxy.turned_away
        )
        ready.set()
        async with server:
            await server.serve_forever()

    def live() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)

    serving = loop.create_task(serve())
    thread = threading.Thread(target=live, name="connect proxy")
    thread.start()
    assert ready.wait(START_S)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(START_S)
        loop.close()


class _Tunnels:
    def __init__(self, places: Mapping[str, str], caller: str, proxy: ConnectProxy) -> None:
        self._places, self._proxy = places, proxy
        self._right = f"Basic {base64.b64encode(caller.encode()).decode()}" if caller else ""

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whichever side goes first, and the end of the test, close both.
        with suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            onward = await self._onward(head, writer)
            if onward is not None:
                await _relay_both(reader, writer, *onward)
        writer.close()

    async def _onward(
        self, head: str, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        method, place, _ = head.split("\r\n", 1)[0].split(" ")
        if self._right and f"proxy-authorization: {self._right}".lower() not in head.lower():
            self._proxy.turned_away.append(place)
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return None
        if method != "CONNECT" or place not in self._places:
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return None
        self._proxy.asked.append(place)
        host, _, port = self._places[place].rpartition(":")
        opened = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return opened


async def _relay_both(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    onward_reader: asyncio.StreamReader,
    onward_writer: asyncio.StreamWriter,
) -> None:
    there = asyncio.create_task(_relay(reader, onward_writer))
    back = asyncio.create_task(_relay(onward_reader, writer))
    try:
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        there.cancel()
        back.cancel()
        onward_writer.close()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(BLOCK_BYTES):
            writer.write(block)
            await writer.drain()
