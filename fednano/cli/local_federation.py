"""The services of a federation on this machine: how each is started, when it serves, and what ends all of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fednano.cli.presets import server_flags
from fednano.cli.processes import Part, Processes, free_address
from fednano.cli.report import SocketLedger
from fednano.cli.socket_meter import SocketMeter
from fednano.config import Security
from fednano.model.manifest import read_manifest, resolve_model
from fednano.rpc.channels import open_channel, wait_until_serving
from fednano.v1 import split_service_pb2, split_service_pb2_grpc

# Processes that import torch start slowly, and all at once on few cores more so.
START_TIMEOUT_S = 300.0
CALL_TIMEOUT_S = 10.0
PLAINTEXT = Security(insecure=True)
SPLIT_SERVICE = "fednano.v1.SplitService"
RUN_SERVICE = "fednano.v1.RunService"
OVERALL = ""
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the two services listen, or will."""

    server: str
    aggregator: str


@dataclass(frozen=True, kw_only=True)
class ClientPart:
    """A client process: its id, the run that it joins, the folder of its examples, where it keeps its work."""

    name: str
    run: str
    examples: Path
    state: Path
    model: str
    pooled: bool = False
    evaluate_on: str = "test"
    wire_encoding: str = "raw"


def start_services(processes: Processes, *, model: str, state: Path) -> tuple[Addresses, Part, Part]:
    """The LLM server and the aggregator, whose database and artifacts go to ``state``. Returns before they serve.

    Raises ModelInvalid, before anything is started, where the model is not there: each part would end of it.
    """
    for half in ("edge", "server"):
        read_manifest(resolve_model(model) / half)
    addresses = Addresses(server=free_address(), aggregator=free_address())
    flags = ["--model", model, "--listen", addresses.server, *server_flags(model)]
    server = processes.start("server", "services.server", flags)
    flags = ["--state", str(state), "--listen", addresses.aggregator]
    return addresses, server, processes.start("aggregator", "services.aggregator", flags, survives_kill=True)


@asynccontextmanager
async def metered(addresses: Addresses) -> AsyncIterator[tuple[Addresses, Callable[[], SocketLedger]]]:
    """Addresses that lead to the same services through meters, and what these have counted so far."""
    async with SocketMeter(addresses.server) as server, SocketMeter(addresses.aggregator) as aggregator:
        through = Addresses(server=server.address, aggregator=aggregator.address)
        yield through, lambda: SocketLedger(server=server.counted, aggregator=aggregator.counted)


def start_client(processes: Processes, client: ClientPart, addresses: Addresses) -> Part:
    """It waits for both services, and for its run."""
    flags = ["--client-id", client.name, "--run", client.run, "--examples", str(client.examples)]
    flags += ["--pooled"] if client.pooled else []
    flags += ["--model", client.model, "--server", addresses.server, "--aggregator", addresses.aggregator]
    flags += ["--evaluate-on", client.evaluate_on, "--wire-encoding", client.wire_encoding]
    flags += ["--state", str(client.state), "--listen", "127.0.0.1:0"]
    return processes.start(client.name, "services.client", flags, may_end=True)


async def services_serving(processes: Processes, server: Part, aggregator: Part) -> None:
    await _all(_serving(processes, server, SPLIT_SERVICE), _serving(processes, aggregator, RUN_SERVICE))


async def clients_serving(processes: Processes, clients: Sequence[Part]) -> None:
    """A client that is done already counts as well."""
    await _all(*(_serving(processes, client, OVERALL) for client in clients))


async def get_model(server_address: str) -> split_service_pb2.Model:
    """What the LLM server says of its model."""
    async with open_channel(server_address, PLAINTEXT) as channel:
        stub: split_service_pb2_grpc.SplitServiceAsyncStub = split_service_pb2_grpc.SplitServiceStub(channel)
        return (await stub.GetModel(split_service_pb2.GetModelRequest(), timeout=CALL_TIMEOUT_S)).model


async def supervised(processes: Processes, work: Coroutine[None, None, ResultT]) -> ResultT:
    """The result of ``work``, or PartFailed where a part ends meanwhile; whichever ends first ends the other."""
    supervision = asyncio.create_task(processes.supervise())
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({supervision, task}, return_when=asyncio.FIRST_COMPLETED)
        # A part that has just died is why a call failed: its failure says more.
        processes.check()
        if supervision.done():
            supervision.result()
        return await task
    finally:
        for each in (supervision, task):
            each.cancel()
        await asyncio.gather(supervision, task, return_exceptions=True)


async def _serving(processes: Processes, part: Part, service: str) -> None:
    address = await processes.ready(part, START_TIMEOUT_S)
    if part.process.poll() == 0:
        return
    async with open_channel(address, PLAINTEXT) as channel:
        await wait_until_serving(channel, service, part.name, START_TIMEOUT_S)


async def _all(*waits: Coroutine[None, None, None]) -> None:
    """The first failure cancels the other waits."""
    async with asyncio.timeout(START_TIMEOUT_S * 2):
        await asyncio.gather(*waits)
