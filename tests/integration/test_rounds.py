"""Rounds on a real aggregator process: tried again, paused, cut short, killed; they always come to an end."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio
import pytest
from aggregator_process import AggregatorProcess, RandomClient, connect, run_config
from google.protobuf.duration_pb2 import Duration

from fednano.v1 import aggregator_service_pb2 as apb
from fednano.v1 import error_reason_pb2, run_pb2
from fednano.v1 import run_service_pb2 as pb
from fednano.v1.run_service_pb2_grpc import RunServiceStub

RUN = "runs/test"
WAIT_S = 30.0


@pytest.fixture
async def aggregator(tmp_path: Path) -> AsyncIterator[AggregatorProcess]:
    process = AggregatorProcess(tmp_path / "state")
    yield process
    if process.is_running:
        assert process.kill(signal.SIGTERM) == 0


async def create(channel: grpc.aio.Channel, config: run_pb2.RunConfig) -> None:
    request = pb.CreateRunRequest(run_id="test", run=run_pb2.Run(config=config))
    await RunServiceStub(channel).CreateRun(request, timeout=10)


async def get_run(channel: grpc.aio.Channel) -> run_pb2.Run:
    return (await RunServiceStub(channel).GetRun(pb.GetRunRequest(name=RUN), timeout=10)).run


async def get_round(channel: grpc.aio.Channel, number: int = 1) -> run_pb2.Round:
    request = pb.GetRoundRequest(name=f"{RUN}/rounds/{number}")
    return (await RunServiceStub(channel).GetRound(request, timeout=10)).round


async def until_run(channel: grpc.aio.Channel, holds: Callable[[run_pb2.Run], bool]) -> run_pb2.Run:
    async with asyncio.timeout(WAIT_S):
        while not holds(run := await get_run(channel)):
            await asyncio.sleep(0.05)
    return run


async def joined(channel: grpc.aio.Channel, folder: Path, *ids: str) -> list[RandomClient]:
    found = [RandomClient(channel, client_id, folder) for client_id in ids]
    for client in found:
        await client.join()
    return found


async def pass_round_0(*clients: RandomClient) -> None:
    for client in clients:
        await client.evaluate((await client.poll()).evaluate)


async def beat(*clients: RandomClient) -> None:
    """Keeps clients alive that do nothing else."""
    while True:
        for client in clients:
            await client.stub.SendHeartbeat(apb.SendHeartbeatRequest(client=client.name), timeout=10)
        await asyncio.sleep(0.5)


async def test_a_round_is_tried_again_with_a_client_that_is_there(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config(rounds=1, round_timeout_s=3))
        a, b = await joined(channel, tmp_path, "a", "b")
        await pass_round_0(a, b)
        (c,) = await joined(channel, tmp_path, "c")
        silent = asyncio.create_task(beat(b))
        await asyncio.gather(a.work(), c.work())
        silent.cancel()
        assert (await get_run(channel)).state == run_pb2.Run.STATE_SUCCEEDED
        turn = await get_round(channel)
        assert (turn.attempt, turn.update_count) == (2, 2)
        states = {part.client: part.state for part in turn.participants}
        assert states[b.name] == run_pb2.Participant.STATE_REPLACED
        assert states[c.name] == run_pb2.Participant.STATE_EVALUATED


async def test_a_round_that_fails_twice_fails_the_run_with_its_reason(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config(rounds=1, round_timeout_s=1))
        a, b = await joined(channel, tmp_path, "a", "b")
        silent = asyncio.create_task(beat(a, b))
        run = await until_run(channel, lambda run: run.state == run_pb2.Run.STATE_FAILED)
        silent.cancel()
        assert run.failure.reason == error_reason_pb2.ERROR_REASON_TOO_FEW_UPDATES
        assert "has 0 of 2 updates" in run.failure.message
        assert run.waiting_for == ""


async def test_a_run_without_its_last_client_waits_in_words_and_then_fails(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    async with connect(await aggregator.start()) as channel:
        config = run_config(rounds=1, min_updates=1, round_timeout_s=6)
        config.join_timeout.CopyFrom(Duration(seconds=2))
        config.min_available_clients = 1
        await create(channel, config)
        (a,) = await joined(channel, tmp_path, "a")
        await pass_round_0(a)
        await a.poll()
        run = await until_run(channel, lambda run: run.state == run_pb2.Run.STATE_FAILED)
        assert run.failure.reason == error_reason_pb2.ERROR_REASON_TOO_FEW_CLIENTS
        watch = RunServiceStub(channel).WatchEvents(pb.WatchEventsRequest(run=RUN), timeout=20)
        words = [response.event.run.waiting_for async for response in watch if response.event.HasField("run")]
        told = list(dict.fromkeys(words))
        assert {"clients 0/1", "updates 0/1"} <= set(told)
        assert told.index("updates 0/1") < len(words) - 1 - words[::-1].index("clients 0/1")


async def test_a_pause_outlives_the_aggregator(aggregator: AggregatorProcess, tmp_path: Path) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config(rounds=2))
        a, b = await joined(channel, tmp_path, "a", "b")
        await pass_round_0(a, b)
        tasks = [(await client.poll()).train for client in (a, b)]
        paused = (await RunServiceStub(channel).PauseRun(pb.PauseRunRequest(name=RUN), timeout=10)).run
        assert paused.state == run_pb2.Run.STATE_PAUSED
        for client, task in zip((a, b), tasks, strict=True):
            await client.train(task)
        await until_run(channel, lambda run: run.waiting_for == "resume")
    aggregator.kill()
    async with connect(await aggregator.start()) as channel:
        run = await until_run(channel, lambda run: run.waiting_for == "resume")
        assert run.state == run_pb2.Run.STATE_PAUSED
        assert run.current_round == f"{RUN}/rounds/1"
        resumed = (await RunServiceStub(channel).ResumeRun(pb.ResumeRunRequest(name=RUN), timeout=10)).run
        assert resumed.state == run_pb2.Run.STATE_RUNNING
        for client in (a, b):
            client.stub = RandomClient(channel, "x", tmp_path).stub
        await asyncio.gather(a.work(), b.work())
        assert (await get_run(channel)).state == run_pb2.Run.STATE_SUCCEEDED


async def test_an_evicted_client_is_told_to_leave_and_another_takes_its_place(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config(rounds=1))
        a, b = await joined(channel, tmp_path, "a", "b")
        await pass_round_0(a, b)
        task = (await a.poll()).train
        await a.train(task)
        (c,) = await joined(channel, tmp_path, "c")
        await RunServiceStub(channel).EvictClient(pb.EvictClientRequest(name=a.name), timeout=10)
        request = apb.SendHeartbeatRequest(client=a.name, round=task.round)
        assert (await a.stub.SendHeartbeat(request, timeout=10)).directive == apb.DIRECTIVE_LEAVE
        await asyncio.gather(b.work(), c.work())
        turn = await get_round(channel)
        states = {part.client: part.state for part in turn.participants}
        assert states[a.name] == run_pb2.Participant.STATE_EVICTED
        assert (turn.attempt, turn.update_count) == (2, 2)
        assert (await get_run(channel)).state == run_pb2.Run.STATE_SUCCEEDED


async def test_a_killed_aggregator_goes_on_with_the_second_attempt(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel, run_config(rounds=1, round_timeout_s=3))
        a, b = await joined(channel, tmp_path, "a", "b")
        await pass_round_0(a, b)
        await a.train((await a.poll()).train)
        silent = asyncio.create_task(beat(a, b))
        async with asyncio.timeout(WAIT_S):
            while (await get_round(channel)).attempt != 2:
                await asyncio.sleep(0.05)
        silent.cancel()
    aggregator.kill()
    async with connect(await aggregator.start()) as channel:
        for client in (a, b):
            client.stub = RandomClient(channel, "x", tmp_path).stub
        await asyncio.gather(a.work(), b.work())
        turn = await get_round(channel)
        assert (turn.attempt, turn.update_count) == (2, 2)
        assert (await get_run(channel)).state == run_pb2.Run.STATE_SUCCEEDED
