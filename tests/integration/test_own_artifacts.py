"""What a client gives or goes on from by itself: Gram matrices counted once a run, and adapters that nobody merges."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from aggregator_process import SHAPES, AggregatorProcess, RandomClient, connect, run_config
from safetensors.numpy import save_file
from upload_training import RUN, refused, total

from fednano.errors import AlreadyExists, FieldInvalid, ResourceNotFound, UpdateInvalid
from fednano.gram_layout import gram_shapes
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import artifact_pb2, run_pb2
from fednano.v1 import run_service_pb2 as rpb
from fednano.v1.run_service_pb2_grpc import RunServiceStub
from fednano.wire.artifacts import spec_of_file

ADAPTER, GRAM = artifact_pb2.ARTIFACT_KIND_ADAPTER, artifact_pb2.ARTIFACT_KIND_GRAM
GRAM_SHAPES = gram_shapes(["image", "text"], 8, 2)


class Client(RandomClient):
    """Sends what its task asks for: random adapters, and Gram matrices that are multiples of the identity."""

    def give(
        self, task: pb.TrainTask, *, gram: float = 1.0, kinds: Sequence[int] = ()
    ) -> tuple[pb.UpdateHeader, list[Path]]:
        """``kinds`` where something else than the task's is to be sent."""
        files = []
        for kind in kinds or task.artifacts:
            name = artifact_pb2.ArtifactKind.Name(kind)  # type: ignore[arg-type]
            files.append(self.folder / f"{self.client_id}-{task.round[-1]}-{name}")
            if kind == GRAM:
                half = (gram * np.eye(8, dtype=np.float32))[np.triu_indices(8)]
                save_file(dict.fromkeys(GRAM_SHAPES, half), files[-1])
            else:
                self._write_adapter(task, files[-1])
        specs = [spec_of_file(file, kind) for file, kind in zip(files, kinds or task.artifacts, strict=True)]  # type: ignore[arg-type]
        header = pb.UpdateHeader(
            round=task.round,
            client=self.name,
            artifacts=specs,
            example_count=10,
            base_adapter_sha256=task.adapter.sha256,
        )
        return header, files

    def _write_adapter(self, task: pb.TrainTask, file: Path) -> None:
        generator = np.random.Generator(np.random.PCG64([ord(self.client_id), int(task.round[-1])]))
        save_file({name: generator.random(shape).astype(np.float32) for name, shape in SHAPES.items()}, file)

    async def live(self) -> list[int]:
        """Until the run has ended; how many artifacts each update had."""
        sent = []
        while True:
            task = await self.poll()
            match task.WhichOneof("task"):
                case "train":
                    header, files = self.give(task.train)
                    sent.append(len(files))
                    await self.upload(header, files)
                case "evaluate":
                    await self.evaluate(task.evaluate)
                case _:
                    return sent


async def begin(channel: grpc.aio.Channel, folder: Path, method: "run_pb2.Method.ValueType") -> tuple[Client, Client]:
    """Two clients that are asked to train for round 1 of 3."""
    config = run_config(rounds=3)
    config.method = method
    request = rpb.CreateRunRequest(run_id="test", run=run_pb2.Run(config=config))
    await RunServiceStub(channel).CreateRun(request, timeout=10)
    a, b = (Client(channel, client_id, folder) for client_id in "ab")
    for client in (a, b):
        await client.join()
    for client in (a, b):
        await client.evaluate((await client.poll()).evaluate)
    return a, b


async def state_of_run(channel: grpc.aio.Channel) -> str:
    run = (await RunServiceStub(channel).GetRun(rpb.GetRunRequest(name=RUN), timeout=10)).run
    return run_pb2.Run.State.Name(run.state)


async def test_gram_matrices_count_once_through_a_kill_amid_their_upload(tmp_path: Path) -> None:
    process = AggregatorProcess(tmp_path / "state")
    async with connect(await process.start()) as channel:
        a, b = await begin(channel, tmp_path, run_pb2.METHOD_FEDNANO_GRAM)
        task = (await a.poll()).train
        assert list(task.artifacts) == [ADAPTER, GRAM]
        header, files = a.give(task)
        # Somewhere in the Gram matrices.
        size_bytes = header.artifacts[0].size_bytes + 30
        call = await a.begin_upload(header, files, size_bytes)
        process.kill()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call
    async with connect(await process.start()) as channel:
        names = a.name, b.name
        a, b = (Client(channel, client_id, tmp_path) for client_id in "ab")
        a.name, b.name = names
        assert list((await a.poll()).train.artifacts) == [ADAPTER, GRAM]
        assert (await a.received(header)).received_bytes == size_bytes
        assert await a.upload(header, files, start=size_bytes) == 1
        # The same again changes nothing; another matrix for the same round comes too late.
        assert await a.upload(header, files) == 1
        other, _ = a.give(task, gram=2.0)
        assert isinstance(await refused(lambda: a.received(other)), AlreadyExists)
        assert await asyncio.gather(a.live(), b.live()) == [[1, 1], [2, 1, 1]]
        assert await state_of_run(channel) == "STATE_SUCCEEDED"
    assert process.kill(signal.SIGTERM) == 0


async def test_gram_matrices_are_refused_where_they_are_not_asked_for_or_cannot_be(tmp_path: Path) -> None:
    process = AggregatorProcess(tmp_path / "state")
    async with connect(await process.start()) as channel:
        a, b = await begin(channel, tmp_path, run_pb2.METHOD_FEDNANO_GRAM)
        task = (await a.poll()).train
        alone, _ = a.give(task, kinds=[ADAPTER])
        assert isinstance(await refused(lambda: a.received(alone)), FieldInvalid)
        header, files = a.give(task, gram=-1.0)
        error = await refused(lambda: a.upload(header, files))
        assert isinstance(error, UpdateInvalid)
        assert "is not positive semi-definite" in error.message
        for client in (a, b):
            await client.upload(*client.give((await client.poll()).train))
        again, _ = a.give((await a.poll()).train, kinds=[ADAPTER, GRAM])
        assert isinstance(await refused(lambda: a.received(again)), FieldInvalid)
    assert process.kill(signal.SIGTERM) == 0


async def test_alone_each_client_goes_on_from_its_own_adapter_also_after_a_kill(tmp_path: Path) -> None:
    process = AggregatorProcess(tmp_path / "state")
    async with connect(await process.start()) as channel:
        a, b = await begin(channel, tmp_path, run_pb2.METHOD_LOCAL)
        first = {client.client_id: (await client.poll()).train.adapter.sha256 for client in (a, b)}
        assert first["a"] == first["b"]
        own = {}
        for client in (a, b):
            header, files = client.give((await client.poll()).train)
            assert total(header) > 0
            await client.upload(header, files)
            own[client.client_id] = header.artifacts[0].sha256
        for client in (a, b):
            task = (await client.poll()).train
            assert (task.round[-1], task.adapter.sha256) == ("2", own[client.client_id])
        process.kill()
    async with connect(await process.start()) as channel:
        names = a.name, b.name
        a, b = (Client(channel, client_id, tmp_path) for client_id in "ab")
        a.name, b.name = names
        task = (await a.poll()).train
        assert task.adapter.sha256 == own["a"]
        received = [part async for part in a.stub.DownloadAdapter(_asked(own["a"]), timeout=10)]
        assert received[0].header.sha256 == own["a"]
        unknown = await refused(lambda: _first(a, "0" * 64))
        assert isinstance(unknown, ResourceNotFound)
        assert await asyncio.gather(a.live(), b.live()) == [[1, 1], [1, 1]]
        request = rpb.ListRoundsRequest(parent=RUN)
        rounds = (await RunServiceStub(channel).ListRounds(request, timeout=10)).rounds
        assert {turn.merged_adapter_sha256 for turn in rounds} == {first["a"]}
    assert process.kill(signal.SIGTERM) == 0


def _asked(sha256: str) -> pb.DownloadAdapterRequest:
    return pb.DownloadAdapterRequest(run=RUN, sha256=sha256)


async def _first(client: Client, sha256: str) -> None:
    async for _ in client.stub.DownloadAdapter(_asked(sha256), timeout=10):
        return
