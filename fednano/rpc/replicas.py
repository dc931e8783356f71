"""Several servers of the same thing behind one setting: their addresses, channels to all, waiting for the first."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio

from fednano.config import Security
from fednano.errors import SettingsInvalid, WireError
from fednano.rpc.channels import open_channel, wait_until_serving


def replica_addresses(setting: str, whose: str) -> list[str]:
    """The addresses in a comma-separated setting, from another one on for each ``whose``: so that load is spread.

    Raises SettingsInvalid where there is none.
    """
    addresses = [address for part in setting.split(",") if (address := part.strip())]
    if not addresses:
        raise SettingsInvalid("--server: give the LLM server's host:port; commas between several")
    first = zlib.crc32(whose.encode()) % len(addresses)
    return addresses[first:] + addresses[:first]


@asynccontextmanager
async def open_replicas(addresses: Sequence[str], security: Security) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """A channel to each, in their order, as long as the block runs."""
    async with AsyncExitStack() as stack:
        yield {address: await stack.enter_async_context(open_channel(address, security)) for address in addresses}


async def first_serving(channels: Mapping[str, grpc.aio.Channel], service: str, peer: str, timeout_s: float) -> str:
    """The address of the first to serve; raises PeerUnavailable where none does within ``timeout_s``."""
    waits = {
        asyncio.create_task(wait_until_serving(channel, service, peer, timeout_s)): address
        for address, channel in channels.items()
    }
    try:
        failure: WireError | None = None
        for ended in asyncio.as_completed(waits):
            try:
                await ended
            except WireError as error:
                failure = error
                continue
            return next(address for wait, address in waits.items() if wait.done() and not wait.exception())
        assert failure is not None
        raise failure
    finally:
        for wait in waits:
            wait.cancel()
