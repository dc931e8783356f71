"""An eviction takes effect at once: what the client has under way ends, what it calls afterwards is refused."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from aggregator_process import RandomClient, run_config
from secure_federation import SecureFederation, secure_federation, tls
from test_roles import reason_of

from fednano.adapter_layout import adapter_shapes
from fednano.security.identity import Role
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as rpb
from fednano.v1.run_service_pb2_grpc import RunServiceStub

HIDDEN_SIZE, RANK = 4096, 256
SHAPES = adapter_shapes(["image", "text"], HIDDEN_SIZE, RANK)
# An eviction is one transaction; the rest is a noisy machine.
AT_ONCE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One client in the first round of a run, with an adapter of megabytes; and an operator."""

    client: RandomClient
    task: pb.TrainTask
    operator: "RunServiceStub"

    async def evict(self) -> None:
        await self.operator.EvictClient(rpb.EvictClientRequest(name=self.client.name), timeout=10)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFederation]:
    with secure_federation(tmp_path_factory.mktemp("federation"), with_server=False) as running:
        yield running


async def test_an_upload_under_way_ends(federation: SecureFederation, tmp_path: Path) -> None:
    async with scene(federation, "upload", tmp_path) as found:
        header, files = found.client.offer(found.task, shapes=SHAPES)
        upload = await found.client.begin_upload(header, files, 1000)
        await found.evict()
        assert await refusal(upload) == "CLIENT_EVICTED"


async def test_a_download_that_waits_for_its_reader_ends(federation: SecureFederation, tmp_path: Path) -> None:
    async with scene(federation, "download", tmp_path) as found:
        request = pb.DownloadAdapterRequest(run="runs/download", sha256=found.task.adapter.sha256)
        frames = found.client.stub.DownloadAdapter(request, timeout=60)
        assert (await frames.read()).header.size_bytes > 4 << 20
        await found.evict()
        assert await refusal(read_all(frames)) == "CLIENT_EVICTED"


async def test_a_poll_that_waits_for_a_task_ends(federation: SecureFederation, tmp_path: Path) -> None:
    async with scene(federation, "poll", tmp_path) as found:
        header, files = found.client.offer(found.task, shapes=SHAPES)
        await found.client.upload(header, files)
        waiting = asyncio.ensure_future(found.client.stub.PollTask(pb.PollTaskRequest(client=found.client.name)))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await found.evict()
        assert await refusal(waiting) == "CLIENT_EVICTED"


async def test_what_it_calls_afterwards_is_refused(federation: SecureFederation, tmp_path: Path) -> None:
    async with scene(federation, "after", tmp_path) as found:
        client, task = found.client, found.task
        header, files = client.offer(task, shapes=SHAPES)
        await found.evict()
        download = client.stub.DownloadAdapter(pb.DownloadAdapterRequest(run="runs/after", sha256=task.adapter.sha256))
        report = pb.ReportMetricsRequest(client=client.name, round=task.round, kind=1, example_count=1)
        calls: dict[str, Awaitable[Any]] = {
            "join": client.join(),
            "poll": client.poll(),
            "download": download.read(),
            "received": client.received(header),
            "upload": client.upload(header, files),
            "report": client.stub.ReportMetrics(report),
        }
        assert {name: await refusal(call) for name, call in calls.items()} == dict.fromkeys(calls, "CLIENT_EVICTED")


async def test_a_client_downloads_no_adapter_of_a_run_that_it_did_not_join(
    federation: SecureFederation, tmp_path: Path
) -> None:
    async with (
        scene(federation, "mine", tmp_path) as found,
        channel_of(federation, Role.CLIENT, "somebody-else") as channel,
    ):
        other = RandomClient(channel, "somebody-else", tmp_path)
        request = pb.DownloadAdapterRequest(run="runs/mine", sha256=found.task.adapter.sha256)
        assert await refusal(other.stub.DownloadAdapter(request, timeout=10).read()) == "RESOURCE_NOT_FOUND"


async def test_a_client_downloads_no_adapter_that_is_another_clients_own(
    federation: SecureFederation, tmp_path: Path
) -> None:
    """Where nothing is merged, each client's adapter is its alone, whoever has learned the digest."""
    config = run_config(rounds=2)
    config.method = run_pb2.METHOD_LOCAL
    async with (
        channel_of(federation, Role.OPERATOR, "ops") as operators,
        channel_of(federation, Role.CLIENT, "owner") as owners,
        channel_of(federation, Role.CLIENT, "reader") as readers,
    ):
        request = rpb.CreateRunRequest(run_id="own", run=run_pb2.Run(config=config))
        await RunServiceStub(operators).CreateRun(request, timeout=10)
        pair = [RandomClient(owners, "owner", tmp_path), RandomClient(readers, "reader", tmp_path)]
        sent = await own_adapters(pair)
        for client, other in zip(pair, reversed(pair), strict=True):
            mine, theirs = (
                pb.DownloadAdapterRequest(run="runs/own", sha256=sent[one.client_id]) for one in (client, other)
            )
            assert (await client.stub.DownloadAdapter(mine, timeout=10).read()).header.sha256 == mine.sha256
            assert await refusal(client.stub.DownloadAdapter(theirs, timeout=10).read()) == "RESOURCE_NOT_FOUND"


async def own_adapters(clients: list[RandomClient]) -> dict[str, str]:
    """What each has sent in round 1, once it starts round 2 from it."""
    sent: dict[str, str] = {}
    for client in clients:
        await client.join()
    for client in clients:
        await client.evaluate((await client.poll()).evaluate)
    for client in clients:
        header, files = client.offer((await client.poll()).train)
        # No Fisher information where nothing is merged.
        del header.artifacts[1:]
        await client.upload(header, files[:1])
        sent[client.client_id] = header.artifacts[0].sha256
    for client in clients:
        assert (await client.poll()).train.adapter.sha256 == sent[client.client_id]
    return sent


@asynccontextmanager
async def scene(federation: SecureFederation, run: str, folder: Path) -> AsyncIterator[Scene]:
    """A client at its TrainTask. The round stays open: it needs two clients, and the other one never answers."""
    async with (
        channel_of(federation, Role.OPERATOR, "ops") as operators,
        channel_of(federation, Role.CLIENT, "evil") as evil,
        channel_of(federation, Role.CLIENT, "good") as good,
    ):
        operator = RunServiceStub(operators)
        config = run_config(clients=2, rounds=1, round_timeout_s=60)
        config.adapter.hidden_size, config.adapter.rank = HIDDEN_SIZE, RANK
        await operator.CreateRun(rpb.CreateRunRequest(run_id=run, run=run_pb2.Run(config=config)), timeout=10)
        clients = [RandomClient(evil, "evil", folder), RandomClient(good, "good", folder)]
        for client in clients:
            await client.join()
        for client in clients:
            await client.evaluate((await client.poll()).evaluate)
        yield Scene(client=clients[0], task=(await clients[0].poll()).train, operator=operator)
        await operator.CancelRun(rpb.CancelRunRequest(name=f"runs/{run}"), timeout=10)


def channel_of(federation: SecureFederation, role: Role, holder_id: str) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(federation.addresses["aggregator"], tls(federation.holder(role, holder_id)))


async def read_all(frames: Any) -> None:
    while await frames.read() is not grpc.aio.EOF:
        pass


async def refusal(call: Awaitable[Any]) -> str:
    """The reason why a call is refused, and soon."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async with asyncio.timeout(AT_ONCE_S):
            await call
    return reason_of(raised.value)
