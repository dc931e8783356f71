"""Two clients that are asked to train, and what an operator and the disk then show of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from aggregator_process import RandomClient, run_config

from fednano.errors import (
    WireError,
)
from fednano.rpc.status import from_rpc_error
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as rpb
from fednano.v1.run_service_pb2_grpc import RunServiceStub

RUN = "runs/test"


@dataclass(frozen=True, kw_only=True)
class Training:
    """Two clients that are asked to train for round 1, and where the aggregator keeps its state."""

    channel: grpc.aio.Channel
    state: Path
    a: RandomClient
    b: RandomClient
    task: pb.TrainTask

    @property
    def incoming(self) -> list[Path]:
        return sorted(path for path in (self.state / "incoming").rglob("*") if path.is_file())

    @property
    def artifacts(self) -> list[str]:
        return sorted(path.name for path in (self.state / "artifacts").rglob("*") if path.is_file())

    async def participant(self, client: RandomClient) -> run_pb2.Participant:
        request = rpb.GetRoundRequest(name=self.task.round)
        found = (await RunServiceStub(self.channel).GetRound(request, timeout=10)).round
        return next(part for part in found.participants if part.client == client.name)

    async def refusal_of(self, client: RandomClient) -> str:
        request = rpb.ListClientsRequest(parent=RUN)
        listed = (await RunServiceStub(self.channel).ListClients(request, timeout=10)).clients
        return next(each.refusal for each in listed if each.name == client.name)


async def begin(channel: grpc.aio.Channel, state: Path, folder: Path, **changes: int) -> Training:
    request = rpb.CreateRunRequest(run_id="test", run=run_pb2.Run(config=run_config(**changes)))
    await RunServiceStub(channel).CreateRun(request, timeout=10)
    a, b = (RandomClient(channel, client_id, folder) for client_id in "ab")
    for client in (a, b):
        await client.join()
    for client in (a, b):
        await client.evaluate((await client.poll()).evaluate)
    return Training(channel=channel, state=state, a=a, b=b, task=(await a.poll()).train)


async def refused(work: Callable[[], object]) -> WireError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await work()  # type: ignore[misc]
    return from_rpc_error(raised.value, "the aggregator")


def total(header: pb.UpdateHeader) -> int:
    return sum(spec.size_bytes for spec in header.artifacts)
