"""Aggregator processes whose state is taken, damaged, or in PostgreSQL and another folder."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest
from aggregator_process import AggregatorProcess, RandomClient, connect, run_config
from postgresql_server import PostgresqlServer, binaries

from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as pb
from fednano.v1.run_service_pb2_grpc import RunServiceStub

PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresqlServer]:
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed: there is no initdb on this machine")
    server = PostgresqlServer(programs)
    try:
        server.start()
        yield server
        server.stop()
    finally:
        server.remove()


@pytest.fixture
async def aggregator(tmp_path: Path) -> AsyncIterator[AggregatorProcess]:
    process = AggregatorProcess(tmp_path / "state")
    yield process
    if process.is_running:
        assert process.kill(signal.SIGTERM) == 0


def start_in_vain(state: Path, *flags: str) -> str:
    """An aggregator that does not come up: its exit status is 1, and this is what it says."""
    command = [sys.executable, "-m", "services.aggregator", "--state", str(state), "--insecure", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


async def create(channel: grpc.aio.Channel, run: str = "test") -> None:
    request = pb.CreateRunRequest(run_id=run, run=run_pb2.Run(config=run_config()), request_id=run)
    await RunServiceStub(channel).CreateRun(request, timeout=10)


async def create_on(channel: grpc.aio.Channel) -> None:
    """Until it fails."""
    while True:
        await create(channel, os.urandom(4).hex())


def scribble(file: Path, offset: int) -> bytes:
    """Spoils all that comes after ``offset``; returns what the file then holds."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(b"\xa5" * (file.stat().st_size - offset))
    return file.read_bytes()


async def finish(address: str, folder: Path) -> str:
    """Joins with two clients, works to the run's end and returns the final adapter's digest."""
    async with connect(address) as channel:
        clients = [RandomClient(channel, client_id, folder) for client_id in ("a", "b")]
        for client in clients:
            await client.join()
        await asyncio.gather(*(client.work() for client in clients))
        stub = RunServiceStub(channel)
        run = (await stub.GetRun(pb.GetRunRequest(name="runs/test"), timeout=10)).run
        assert run.state == run_pb2.Run.STATE_SUCCEEDED, run
        return (
            (await stub.ListRounds(pb.ListRoundsRequest(parent="runs/test"), timeout=10))
            .rounds[-1]
            .merged_adapter_sha256
        )


async def test_a_second_aggregator_does_not_start_on_a_state_in_use(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    await aggregator.start()
    said = await asyncio.to_thread(start_in_vain, tmp_path / "state")
    assert "is in use by process" in said
    assert "stop that aggregator first" in said


async def test_a_damaged_database_stops_the_start_and_keeps_its_bytes(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    file = tmp_path / "state" / "aggregator.sqlite3"
    await aggregator.start()
    assert aggregator.kill(signal.SIGTERM) == 0
    spoilt = scribble(file, PAGE_BYTES)
    said = await asyncio.to_thread(start_in_vain, tmp_path / "state")
    assert f"{file} is damaged" in said
    assert "restore the newest backup" in said
    assert file.read_bytes() == spoilt


async def test_a_database_damaged_while_it_is_used_ends_the_aggregator(
    aggregator: AggregatorProcess, tmp_path: Path
) -> None:
    async with connect(await aggregator.start()) as channel:
        await create(channel)
    assert aggregator.kill(signal.SIGTERM) == 0
    async with connect(await aggregator.start()) as channel:
        scribble(tmp_path / "state" / "aggregator.sqlite3", PAGE_BYTES)
        with pytest.raises(grpc.aio.AioRpcError):
            await create_on(channel)
    async with asyncio.timeout(20):
        while aggregator.is_running:
            await asyncio.sleep(0.05)
    assert aggregator.exit_status == 1
    assert "is damaged" in (tmp_path / "state.log").read_text().splitlines()[-1]


async def test_a_run_in_postgresql_outlives_kills_of_the_aggregator_and_of_the_server(
    tmp_path: Path, postgresql: PostgresqlServer
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    alone = AggregatorProcess(undisturbed / "state")
    address = await alone.start()
    async with connect(address) as channel:
        await create(channel)
    expected = await finish(address, undisturbed)
    assert alone.kill(signal.SIGTERM) == 0

    flags = ["--database", postgresql.create_database("run"), "--artifacts", f"file://{disturbed}/kept"]
    aggregator = AggregatorProcess(disturbed / "state", *flags)
    async with connect(await aggregator.start()) as channel:
        await create(channel)
        a, b = (RandomClient(channel, client_id, disturbed) for client_id in ("a", "b"))
        await a.join()
        await b.join()
        for client in (a, b):
            await client.evaluate((await client.poll()).evaluate)
        await a.train((await a.poll()).train)
        aggregator.kill()
    postgresql.stop()
    postgresql.start()
    address = await aggregator.start()
    postgresql.stop()
    postgresql.start()
    assert await finish(address, disturbed) == expected
    assert aggregator.kill(signal.SIGTERM) == 0
    assert not list((disturbed / "state").glob("*.sqlite3"))
    assert list((disturbed / "kept").rglob("*.safetensors"))
