"""A real aggregator process, and clients that send random adapters instead of training."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import grpc.aio
import numpy as np
from google.protobuf.duration_pb2 import Duration
from safetensors.numpy import save_file

from fednano.adapter_layout import adapter_shapes
from fednano.config import Security
from fednano.rpc.channels import open_channel
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import artifact_pb2, run_pb2
from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceStub
from fednano.wire.artifacts import file_chunks, spec_of_file

PLAINTEXT = Security(insecure=True)
KINDS = (artifact_pb2.ARTIFACT_KIND_ADAPTER, artifact_pb2.ARTIFACT_KIND_FISHER)
SHAPES = adapter_shapes(["image", "text"], 8, 2)


def run_config(
    *, clients: int = 2, rounds: int = 2, min_updates: int = 2, round_timeout_s: int = 30
) -> run_pb2.RunConfig:
    return run_pb2.RunConfig(
        model_digest="d" * 64,
        round_count=rounds,
        clients_per_round=clients,
        min_updates=min_updates,
        round_timeout=Duration(seconds=round_timeout_s),
        join_timeout=Duration(seconds=30),
        method=run_pb2.METHOD_FEDNANO,
        adapter=run_pb2.AdapterConfig(rank=2, alpha=4, modalities=["image", "text"], hidden_size=8),
        train=run_pb2.TrainConfig(local_epochs=1, batch_size=8, learning_rate=1e-3, seed=7),
        fisher=run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_L2, floor=1.0),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=4),
    )


class AggregatorProcess:
    """``python -m services.aggregator`` on one port and one state folder, started as often as it is killed."""

    def __init__(
        self, state: Path, *flags: str, transport: Sequence[str] = ("--insecure",), listen: str = "127.0.0.1:0"
    ) -> None:
        self._state, self._flags = state, (*transport, *flags)
        self._listen = listen
        self._ready = state.parent / "ready"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> str:
        """Returns the address once it serves; the same one each time."""
        self._spawn()
        async with asyncio.timeout(30):
            while not self._is_ready():
                await asyncio.sleep(0.05)
        self._listen = self._ready.read_text()
        return self._listen

    def _spawn(self) -> None:
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "services.aggregator", "--state", str(self._state), "--listen", self._listen]
        command += ["--ready-file", str(self._ready), "--lease-s", "3", *self._flags]
        with self._state.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log)

    def _is_ready(self) -> bool:
        assert self.is_running, self._state.with_suffix(".log").read_text()
        return self._ready.exists()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self._process is not None
        os.kill(self._process.pid, number)
        return self._process.wait(timeout=20)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """None until the process has ended."""
        return None if self._process is None else self._process.poll()


class RandomClient:
    """Answers tasks with adapters that depend on its name and the round alone."""

    def __init__(self, channel: grpc.aio.Channel, client_id: str, folder: Path) -> None:
        self.stub = AggregatorServiceStub(channel)
        self.client_id = client_id
        self.folder = folder
        self.name = ""

    async def join(self, model_digest: str = "d" * 64) -> None:
        request = pb.JoinRunRequest(client_id=self.client_id, example_count=10, model_digest=model_digest)
        self.name = (await self.stub.JoinRun(request, timeout=10)).client.name

    async def poll(self) -> pb.PollTaskResponse:
        while True:
            task = await self.stub.PollTask(pb.PollTaskRequest(client=self.name), timeout=10)
            if task.WhichOneof("task"):
                return task

    async def train(self, task: pb.TrainTask, *, spoil: float | None = None) -> int:
        header, files = self.offer(task, spoil=spoil)
        return await self.upload(header, files)

    def offer(
        self, task: pb.TrainTask, *, spoil: float | None = None, shapes: Mapping[str, tuple[int, ...]] = SHAPES
    ) -> tuple[pb.UpdateHeader, list[Path]]:
        """The client's update for a round, on disk, and what announces it."""
        files = self._write(task.round, spoil, shapes)
        return self.announce(task, files), files

    def announce(self, task: pb.TrainTask, files: Sequence[Path]) -> pb.UpdateHeader:
        return pb.UpdateHeader(
            round=task.round,
            client=self.name,
            artifacts=[spec_of_file(file, kind) for file, kind in zip(files, KINDS, strict=True)],
            example_count=10,
            metrics={"train/loss": 1.0, "bytes/adapters": 5.0},
            base_adapter_sha256=task.adapter.sha256,
        )

    async def upload(self, header: pb.UpdateHeader, files: Sequence[Path], start: int = 0) -> int:
        return (await self.stub.UploadUpdate(_frames(header, files, start), timeout=20)).update_count

    async def received(self, header: pb.UpdateHeader) -> pb.GetUploadResponse:
        return await self.stub.GetUpload(pb.GetUploadRequest(header=header), timeout=10)

    async def begin_upload(
        self, header: pb.UpdateHeader, files: Sequence[Path], size_bytes: int
    ) -> "grpc.aio.StreamUnaryCall[pb.UploadUpdateRequest, pb.UploadUpdateResponse]":
        """A call that has sent so much of the update and no more; returns once that has arrived."""
        call = self.stub.UploadUpdate(timeout=60)
        await call.write(pb.UploadUpdateRequest(header=header))
        content = b"".join(file.read_bytes() for file in files)[:size_bytes]
        await call.write(pb.UploadUpdateRequest(chunk=artifact_pb2.ArtifactChunk(offset=0, data=content)))
        async with asyncio.timeout(20):
            while (await self.received(header)).received_bytes < size_bytes:
                await asyncio.sleep(0.02)
        return call

    async def evaluate(self, task: pb.EvaluateTask) -> None:
        request = pb.ReportMetricsRequest(
            client=self.name,
            round=task.round,
            kind=pb.ReportMetricsRequest.KIND_EVALUATION,
            example_count=4,
            metrics={"test/accuracy": 0.5},
        )
        await self.stub.ReportMetrics(request, timeout=10)

    async def work(self) -> None:
        """Until the run has ended."""
        while True:
            task = await self.poll()
            match task.WhichOneof("task"):
                case "train":
                    await self.train(task.train)
                case "evaluate":
                    await self.evaluate(task.evaluate)
                case _:
                    return

    def _write(self, round_name: str, spoil: float | None, shapes: Mapping[str, tuple[int, ...]]) -> list[Path]:
        seed = hashlib.sha256(f"{self.client_id}/{round_name}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(list(seed)))
        files = [self.folder / f"{self.client_id}-{kind}" for kind in ("adapter", "fisher")]
        for file in files:
            tensors = {name: generator.random(shape).astype(np.float32) for name, shape in shapes.items()}
            if spoil is not None:
                tensors["text.up.weight"][0, 0] = spoil
            save_file(tensors, file)
        return files


async def _frames(header: pb.UpdateHeader, files: Sequence[Path], start: int) -> AsyncIterator[pb.UploadUpdateRequest]:
    yield pb.UploadUpdateRequest(header=header)
    for chunk in file_chunks(files, start):
        yield pb.UploadUpdateRequest(chunk=chunk)


def connect(address: str) -> grpc.aio.Channel:
    return open_channel(address, PLAINTEXT)
