"""An aggregator in this process, behind a real port: for tests that do not kill it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aggregator_process import PLAINTEXT

from fednano.rpc.server import serving
from fednano.v1.aggregator_service_pb2_grpc import add_AggregatorServiceServicer_to_server
from fednano.v1.run_service_pb2_grpc import add_RunServiceServicer_to_server
from services.aggregator.aggregator_servicer import AggregatorServicer
from services.aggregator.federation import open_federation
from services.aggregator.run_servicer import RunServicer
from services.aggregator.settings import AggregatorSettings


@asynccontextmanager
async def aggregator_inside(state: Path) -> AsyncIterator[str]:
    """The address of an aggregator that serves while the block runs."""
    federation = open_federation(AggregatorSettings(insecure=True, state=state))
    aggregator, operators = AggregatorServicer(federation), RunServicer(federation)
    services = {
        "fednano.v1.AggregatorService": lambda server: add_AggregatorServiceServicer_to_server(aggregator, server),
        "fednano.v1.RunService": lambda server: add_RunServiceServicer_to_server(operators, server),
    }
    federation.drive_unended()
    try:
        async with serving(services, "127.0.0.1:0", PLAINTEXT, grace_s=0.1) as running:
            yield running.address
    finally:
        await federation.stop()
