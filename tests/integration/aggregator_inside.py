"""An aggregator in this process, behind a real port: for tests that do not kill it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aggregator_process import PLAINTEXT

from fednano.rpc.server import serving
from services.aggregator.federation import open_federation
from services.aggregator.services import aggregator_services
from services.aggregator.settings import AggregatorSettings


@asynccontextmanager
async def aggregator_inside(state: Path) -> AsyncIterator[str]:
    """The address of an aggregator that serves while the block runs."""
    federation = open_federation(AggregatorSettings(insecure=True, state=state))
    federation.drive_unended()
    try:
        async with serving(aggregator_services(federation), "127.0.0.1:0", PLAINTEXT, grace_s=0.1) as running:
            yield running.address
    finally:
        await federation.stop()
