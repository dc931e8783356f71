"""The calls to the aggregator: each with a deadline, and made again for a while where the aggregator is lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fednano.errors import DigestMismatch, PeerUnavailable, StreamMalformed
from fednano.names import ClientName, RunName
from fednano.rpc.retry import call_with_retry
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1.artifact_pb2 import ArtifactSpec
from fednano.wire.artifacts import ArtifactReceiver, file_chunks

if TYPE_CHECKING:
    from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceAsyncStub

ResultT = TypeVar("ResultT")
CALL_TIMEOUT_S = 20.0
# The aggregator answers without a task shortly before this.
POLL_TIMEOUT_S = 30.0
TRANSFER_TIMEOUT_S = 300.0
LEAVE_TIMEOUT_S = 2.0
MAX_ADAPTER_BYTES = 1 << 30


class AggregatorLink:
    """All calls are idempotent by contract; ``wait_s`` is how long a lost aggregator is tried for."""

    def __init__(self, stub: "AggregatorServiceAsyncStub", *, peer: str, wait_s: float) -> None:
        self._stub = stub
        self._peer = peer
        self._wait_s = wait_s

    async def join(self, request: pb.JoinRunRequest) -> pb.JoinRunResponse:
        return await self._call(lambda: self._stub.JoinRun(request, timeout=CALL_TIMEOUT_S), "join the run")

    async def poll(self, client: ClientName) -> pb.PollTaskResponse:
        request = pb.PollTaskRequest(client=str(client))
        return await self._call(lambda: self._stub.PollTask(request, timeout=POLL_TIMEOUT_S), "get a task")

    async def heartbeat(self, request: pb.SendHeartbeatRequest) -> "pb.Directive.ValueType":
        """One attempt: the next heartbeat comes anyway. Raises grpc.aio.AioRpcError or PeerUnavailable."""
        response = await self._unless_cancelled(lambda: self._stub.SendHeartbeat(request, timeout=CALL_TIMEOUT_S))
        return response.directive

    async def leave(self, client: ClientName) -> None:
        """One attempt: a client that is gone is noticed. Raises grpc.aio.AioRpcError."""
        await self._stub.LeaveRun(pb.LeaveRunRequest(client=str(client)), timeout=LEAVE_TIMEOUT_S)

    async def download(self, run: RunName, spec: ArtifactSpec, target: Path) -> Path:
        """``target``, which then holds bytes with the SHA-256 that the task announced."""
        return await self._call(lambda: self._download(run, spec, target), "download the adapter")

    async def upload(self, header: pb.UpdateHeader, files: Sequence[Path]) -> None:
        await self._call(
            lambda: self._stub.UploadUpdate(_update_frames(header, files), timeout=TRANSFER_TIMEOUT_S),
            "upload the update",
        )

    async def report(self, request: pb.ReportMetricsRequest) -> None:
        await self._call(lambda: self._stub.ReportMetrics(request, timeout=CALL_TIMEOUT_S), "report the evaluation")

    async def _call(self, call: Callable[[], Awaitable[ResultT]], what: str) -> ResultT:
        return await call_with_retry(
            lambda: self._unless_cancelled(call), peer=self._peer, what=what, give_up_after_s=self._wait_s
        )

    async def _unless_cancelled(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """gRPC raises CancelledError also where it was the peer that cancelled: then the peer is lost."""
        try:
            return await call()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise PeerUnavailable(f"{self._peer} cancelled the call", peer=self._peer) from None

    async def _download(self, run: RunName, spec: ArtifactSpec, target: Path) -> Path:
        request = pb.DownloadAdapterRequest(run=str(run), sha256=spec.sha256)
        with ArtifactReceiver([spec], [target], MAX_ADAPTER_BYTES) as receiver:
            async for response in self._stub.DownloadAdapter(request, timeout=TRANSFER_TIMEOUT_S):
                if response.WhichOneof("frame") == "chunk":
                    receiver.add(response.chunk)
                else:
                    _check_header(response.header, spec)
            return receiver.finish()[0]


async def _update_frames(header: pb.UpdateHeader, files: Sequence[Path]) -> AsyncIterator[pb.UploadUpdateRequest]:
    yield pb.UploadUpdateRequest(header=header)
    for chunk in file_chunks(files):
        yield pb.UploadUpdateRequest(chunk=chunk)


def _check_header(header: ArtifactSpec, announced: ArtifactSpec) -> None:
    if not header.sha256:
        raise StreamMalformed("the aggregator sent an adapter without a header")
    if header.sha256 != announced.sha256:
        message = f"the aggregator sends the adapter {header.sha256}, where its task announced {announced.sha256}"
        raise DigestMismatch(message, announced=announced.sha256, received=header.sha256)
