"""A client whose updates depend on its name, the round and the round's base adapter alone, slow enough to be hit.

As a program it is one process: ``python paced_client.py CLIENT_ID AGGREGATOR FOLDER``.
"""

import asyncio
import hashlib
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from safetensors.numpy import save_file

from fednano.adapter_layout import adapter_shapes
from fednano.config import Security
from fednano.errors import RoundClosed, WireError
from fednano.names import RoundName
from fednano.rpc.channels import open_channel
from fednano.rpc.retry import call_once
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceStub
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER, ArtifactChunk
from fednano.wire.artifacts import spec_of_file

if TYPE_CHECKING:
    from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceAsyncStub

ResultT = TypeVar("ResultT")
PLAINTEXT = Security(insecure=True)
MODEL_DIGEST = "d" * 64
MODALITIES = ("image", "text")
HIDDEN, RANK = 2048, 8
SHAPES = adapter_shapes(list(MODALITIES), HIDDEN, RANK)
RUN = "runs/chaos"
KINDS = (ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER)
CHUNK_BYTES = 1 << 16
CALL_TIMEOUT_S = 20.0
TRANSFER_TIMEOUT_S = 120.0
PATIENCE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What became of a client's calls: a file, for the client may be killed."""

    path: Path

    def write(self, what: str, of: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{what}\t{of}\n")

    def lines(self) -> list[tuple[str, str]]:
        if not self.path.is_file():
            return []
        pairs = [line.partition("\t") for line in self.path.read_text().splitlines()]
        return [(what, of) for what, _, of in pairs]


@dataclass(kw_only=True)
class PacedClient:
    """``live`` goes on through every loss of the aggregator, until the run has ended."""

    client_id: str
    address: str
    folder: Path
    think_s: float = 0.3
    chunk_pause_s: float = 0.03
    is_living: bool = False

    @property
    def journal(self) -> "Journal":
        return Journal(path=self.folder / f"{self.client_id}.journal")

    async def live(self) -> None:
        async with open_channel(self.address, PLAINTEXT) as channel:
            stub: AggregatorServiceAsyncStub = AggregatorServiceStub(channel)
            join = pb.JoinRunRequest(run=RUN, client_id=self.client_id, example_count=10, model_digest=MODEL_DIGEST)
            joined = await self._call(lambda: stub.JoinRun(join, timeout=CALL_TIMEOUT_S))
            poll = pb.PollTaskRequest(client=joined.client.name)
            while True:
                task = await self._call(lambda: stub.PollTask(poll, timeout=CALL_TIMEOUT_S))
                match task.WhichOneof("task"):
                    case "train":
                        await self._train(task.train, stub, poll.client)
                    case "evaluate":
                        await self._evaluate(task.evaluate.round, stub, poll.client)
                    case "end":
                        return

    async def _call(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """As the real client's calls, but more often: nothing waits here for a back-off that has grown long."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await call_once(call, peer="the aggregator")
            except WireError as error:
                self.journal.write("failed", type(error).__name__)
                if not error.retryable or time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(random.uniform(0.1, 0.3))

    async def _evaluate(self, round_name: str, stub: "AggregatorServiceAsyncStub", client: str) -> None:
        await asyncio.sleep(self.think_s)
        request = pb.ReportMetricsRequest(
            client=client,
            round=round_name,
            kind=pb.ReportMetricsRequest.KIND_EVALUATION,
            example_count=4,
            metrics={"test/accuracy": 0.5},
        )
        # An answer that was lost on the way is repeated, maybe after the round.
        with suppress(RoundClosed):
            await self._call(lambda: stub.ReportMetrics(request, timeout=CALL_TIMEOUT_S))

    async def _train(self, task: pb.TrainTask, stub: "AggregatorServiceAsyncStub", client: str) -> None:
        if ("accepted", task.round) in self.journal.lines():
            self.journal.write("asked again", task.round)
        await self._call(lambda: self._download(task, stub))
        await asyncio.sleep(self.think_s)
        files = write_update(self.folder, self.client_id, task)
        header = announce(client, task, files)

        async def upload() -> None:
            there = await stub.GetUpload(pb.GetUploadRequest(header=header), timeout=CALL_TIMEOUT_S)
            if not there.accepted:
                if there.received_bytes:
                    self.journal.write("resumed", task.round)
                frames = self._frames(header, files, there.received_bytes)
                await stub.UploadUpdate(frames, timeout=TRANSFER_TIMEOUT_S)

        # Where the run has failed meanwhile.
        with suppress(RoundClosed):
            await self._call(upload)
            self.journal.write("accepted", task.round)

    async def _download(self, task: pb.TrainTask, stub: "AggregatorServiceAsyncStub") -> None:
        """The bytes themselves are of no use here: their digest is what the update depends on."""
        run = str(RoundName.parse(task.round, "round").parent)
        request = pb.DownloadAdapterRequest(run=run, sha256=task.adapter.sha256)
        digest = hashlib.sha256()
        async for response in stub.DownloadAdapter(request, timeout=TRANSFER_TIMEOUT_S):
            digest.update(response.chunk.data)
        assert digest.hexdigest() == task.adapter.sha256

    async def _frames(
        self, header: pb.UpdateHeader, files: Sequence[Path], start: int
    ) -> AsyncIterator[pb.UploadUpdateRequest]:
        yield pb.UploadUpdateRequest(header=header)
        content = b"".join(file.read_bytes() for file in files)
        for offset in range(start, len(content), CHUNK_BYTES):
            await asyncio.sleep(self.chunk_pause_s)
            chunk = ArtifactChunk(offset=offset, data=content[offset : offset + CHUNK_BYTES])
            yield pb.UploadUpdateRequest(chunk=chunk)


def write_update(folder: Path, client_id: str, task: pb.TrainTask) -> list[Path]:
    """The adapter's and the Fisher information's file: the same bytes for the same client, round and base."""
    seed = hashlib.sha256(f"{client_id}/{task.round}/{task.adapter.sha256}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    files = [folder / f"{client_id}-{kind}" for kind in ("adapter", "fisher")]
    for file in files:
        save_file({name: generator.random(shape, np.float32) for name, shape in SHAPES.items()}, file)
    return files


def announce(client: str, task: pb.TrainTask, files: Sequence[Path]) -> pb.UpdateHeader:
    return pb.UpdateHeader(
        round=task.round,
        client=client,
        artifacts=[spec_of_file(file, kind) for file, kind in zip(files, KINDS, strict=True)],
        example_count=10,
        metrics={"train/loss": 1.0},
        base_adapter_sha256=task.adapter.sha256,
    )


if __name__ == "__main__":
    asyncio.run(PacedClient(client_id=sys.argv[1], address=sys.argv[2], folder=Path(sys.argv[3])).live())
