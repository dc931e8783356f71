"""The meter on real sockets: everything passes, both ways, and is counted."""

import asyncio
from contextlib import suppress

import pytest

from fednano.cli.socket_meter import SocketBytes, SocketMeter

LARGE = bytes(range(256)) * 4096


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says everything twice, once the caller has said all."""
    said = await reader.read(-1)
    writer.write(said + said)
    await writer.drain()
    writer.close()


async def ask(address: str, words: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(words)
    writer.write_eof()
    try:
        return await reader.read(-1)
    finally:
        writer.close()


@pytest.mark.parametrize("words", [b"one", LARGE])
async def test_what_passes_is_whole_and_counted_each_way(words: bytes) -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as service:
        port = service.sockets[0].getsockname()[1]
        async with SocketMeter(f"127.0.0.1:{port}") as meter:
            assert await ask(meter.address, words) == words + words
            assert await ask(meter.address, words) == words + words
            assert meter.counted == SocketBytes(up=2 * len(words), down=4 * len(words))


async def test_a_service_that_is_away_is_a_connection_that_ends() -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as service:
        port = service.sockets[0].getsockname()[1]
    async with SocketMeter(f"127.0.0.1:{port}") as meter:
        with suppress(ConnectionResetError):
            assert await ask(meter.address, b"one") == b""
        assert meter.counted == SocketBytes(up=0, down=0)


async def test_a_meter_that_ends_while_somebody_is_connected_ends_quietly() -> None:
    said: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as service:
        port = service.sockets[0].getsockname()[1]
        async with SocketMeter(f"127.0.0.1:{port}") as meter:
            host, _, own_port = meter.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(own_port))
            writer.write(b"one")
            while not meter.counted.up:
                await asyncio.sleep(0.01)
        # Whoever is connected hears of the end.
        with suppress(ConnectionResetError):
            assert await reader.read(-1) == b""
        writer.close()
    assert said == []
