"""Runs through a real aggregator process: undisturbed, killed, watched, and with clients that fail it."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import grpc.aio
import pytest
from aggregator_process import AggregatorProcess, RandomClient, connect, run_config

from fednano.errors import ModelDigestMismatch, Unsupported, UpdateInvalid
from fednano.rpc.status import from_rpc_error
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as pb
from fednano.v1.run_service_pb2_grpc import RunServiceStub

RUN = "runs/test"


@pytest.fixture
async def aggregator(tmp_path: Path) -> AsyncIterator[AggregatorProcess]:
    process = AggregatorProcess(tmp_path / "state")
    yield process
    if process.is_running:
        assert process.kill(signal.SIGTERM) == 0


async def create(channel: grpc.aio.Channel, config: run_pb2.RunConfig) -> pb.CreateRunResponse:
    request = pb.CreateRunRequest(run_id="test", run=run_pb2.Run(config=config), request_id="one")
    return await RunServiceStub(channel).CreateRun(request, timeout=10)


async def two_clients(channel: grpc.aio.Channel, folder: Path) -> list[RandomClient]:
    clients = [RandomClient(channel, client_id, folder) for client_id in ("a", "b")]
    for client in clients:
        await client.join()
    return clients


async def final_digest(channel: grpc.aio.Channel) -> str:
    stub = RunServiceStub(channel)
    run = (await stub.GetRun(pb.GetRunRequest(name=RUN), timeout=10)).run
    assert run.state == run_pb2.Run.STATE_SUCCEEDED, run
    rounds = (await stub.ListRounds(pb.ListRoundsRequest(parent=RUN), timeout=10)).rounds
    return rounds[-1].merged_adapter_sha256


async def undisturbed_digest(folder: Path) -> str:
    process = AggregatorProcess(folder / "state")
    async with connect(await process.start()) as channel:
        await create(channel, run_config())
        await asyncio.gather(*(client.work() for client in await two_clients(channel, folder)))
        digest = await final_digest(channel)
    process.kill(signal.SIGTERM)
    return digest


async def test_a_killed_aggregator_goes_on_to_the_same_adapter(
    aggregator: AggregatorProcess, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config())
        a, b = await two_clients(channel, tmp_path)
        for client in (a, b):
            await client.evaluate((await client.poll()).evaluate)
        await a.train((await a.poll()).train)
    aggregator.kill()
    async with connect(await aggregator.start()) as channel:
        a.stub = b.stub = RandomClient(channel, "x", tmp_path).stub
        await asyncio.gather(a.work(), b.work())
        assert await final_digest(channel) == await undisturbed_digest(tmp_path_factory.mktemp("undisturbed"))


async def test_a_watch_resumes_after_a_kill_without_gap_or_repeat(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config())
        clients = await two_clients(channel, tmp_path)
        watch = RunServiceStub(channel).WatchEvents(pb.WatchEventsRequest(run=RUN), timeout=20)
        seen = [(await watch.read()).event.sequence for _ in range(3)]
    aggregator.kill()
    async with connect(await aggregator.start()) as channel:
        for client in clients:
            client.stub = RandomClient(channel, "x", tmp_path).stub
        await asyncio.gather(*(client.work() for client in clients))
        request = pb.WatchEventsRequest(run=RUN, after_sequence=seen[-1])
        async for response in RunServiceStub(channel).WatchEvents(request, timeout=20):
            seen.append(response.event.sequence)
    assert seen == list(range(1, len(seen) + 1))
    assert response.event.run.state == run_pb2.Run.STATE_SUCCEEDED


async def test_an_update_with_nan_is_refused_and_the_round_goes_on(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config(rounds=1))
        a, b = await two_clients(channel, tmp_path)
        for client in (a, b):
            await client.evaluate((await client.poll()).evaluate)
        task = (await a.poll()).train
        for spoil, fault in ((float("nan"), "not finite"), (float("inf"), "not finite")):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await a.train(task, spoil=spoil)
            error = from_rpc_error(raised.value, "the aggregator")
            assert isinstance(error, UpdateInvalid)
            assert fault in error.message
            assert error.facts["tensor"] == "text.up.weight"
        await asyncio.gather(a.work(), b.work())
        assert await final_digest(channel)


async def test_the_same_update_again_changes_nothing(aggregator: AggregatorProcess, tmp_path: Path) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config(rounds=1))
        a, b = await two_clients(channel, tmp_path)
        for client in (a, b):
            await client.evaluate((await client.poll()).evaluate)
        task = (await a.poll()).train
        assert await a.train(task) == 1
        assert await a.train(task) == 1


async def test_a_round_goes_on_without_a_lost_client(aggregator: AggregatorProcess, tmp_path: Path) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config(rounds=1, min_updates=1, round_timeout_s=20))
        a, b = await two_clients(channel, tmp_path)
        for client in (a, b):
            await client.evaluate((await client.poll()).evaluate)
        await a.work()
        rounds = (await RunServiceStub(channel).ListRounds(pb.ListRoundsRequest(parent=RUN), timeout=10)).rounds
        assert rounds[-1].update_count == 1
        assert await final_digest(channel)


async def test_a_client_of_another_model_is_refused_with_both_digests(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config())
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await RandomClient(channel, "a", tmp_path).join(model_digest="e" * 64)
        error = from_rpc_error(raised.value, "the aggregator")
        assert isinstance(error, ModelDigestMismatch)
        assert error.facts == {"expected_digest": "d" * 64, "actual_digest": "e" * 64}


async def test_a_run_is_created_once_and_only_if_it_can_be_run(aggregator: AggregatorProcess) -> None:
    async with connect(await aggregator.start()) as channel:
        assert (await create(channel, run_config())).run.name == (await create(channel, run_config())).run.name == RUN
        config = run_config()
        # As of a newer operator's contract.
        config.method = cast("run_pb2.Method.ValueType", 99)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await create(channel, config)
        assert isinstance(from_rpc_error(raised.value, "the aggregator"), Unsupported)


async def test_updates_of_old_rounds_leave_the_disk(tmp_path: Path) -> None:
    """Of four rounds the last one's updates stay, and every global adapter."""
    aggregator = AggregatorProcess(tmp_path / "state", "--keep-update-rounds", "1")
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config(rounds=4))
        clients = await two_clients(channel, tmp_path)
        await asyncio.gather(*(client.work() for client in clients))
        await final_digest(channel)
        listed = await RunServiceStub(channel).ListRounds(pb.ListRoundsRequest(parent="runs/test"), timeout=10)
    assert aggregator.kill(signal.SIGTERM) == 0
    merged = {turn.merged_adapter_sha256 for turn in listed.rounds}
    # Two clients' adapters and Fisher information.
    found = {path.stem for path in (tmp_path / "state" / "artifacts").rglob("*.safetensors")}
    assert merged < found
    assert len(found - merged) == 4
    assert len(merged) == 5
