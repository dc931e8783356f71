"""The calls to the aggregator: each with a deadline, and made again for a while where the aggregator is lost."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fednano.errors import DigestMismatch, StreamMalformed
from fednano.names import ClientName, RunName
from fednano.rpc.retry import call_once, call_with_retry
from fednano.telemetry import get_logger
from fednano.tracing import trace_metadata
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1.artifact_pb2 import ArtifactSpec
from fednano.wire.artifacts import ArtifactReceiver, file_chunks
from services.client.metrics import ClientMetrics

if TYPE_CHECKING:
    from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceAsyncStub

log = get_logger("client.aggregator")
ResultT = TypeVar("ResultT")
CALL_TIMEOUT_S = 20.0
# The aggregator answers without a task shortly before this.
POLL_TIMEOUT_S = 30.0
TRANSFER_TIMEOUT_S = 300.0
LEAVE_TIMEOUT_S = 2.0
MAX_ADAPTER_BYTES = 1 << 30


class AggregatorLink:
    """All calls are idempotent by contract; ``wait_s`` is how long a lost aggregator is tried for."""

    def __init__(self, stub: "AggregatorServiceAsyncStub", *, peer: str, wait_s: float, metrics: ClientMetrics) -> None:
        self._stub = stub
        self._peer = peer
        self._wait_s = wait_s
        self._metrics = metrics

    async def join(self, request: pb.JoinRunRequest) -> pb.JoinRunResponse:
        return await self._call(lambda: self._stub.JoinRun(request, timeout=CALL_TIMEOUT_S), "join the run")

    async def poll(self, client: ClientName) -> pb.PollTaskResponse:
        request = pb.PollTaskRequest(client=str(client))
        return await self._call(lambda: self._stub.PollTask(request, timeout=POLL_TIMEOUT_S), "get a task")

    async def heartbeat(self, request: pb.SendHeartbeatRequest) -> "pb.Directive.ValueType":
        """One attempt: the next heartbeat comes anyway. Raises a WireError."""
        response = await call_once(lambda: self._stub.SendHeartbeat(request, timeout=CALL_TIMEOUT_S), peer=self._peer)
        return response.directive

    async def leave(self, client: ClientName) -> None:
        """One attempt: a client that is gone is noticed. Raises a WireError."""
        request = pb.LeaveRunRequest(client=str(client))
        await call_once(lambda: self._stub.LeaveRun(request, timeout=LEAVE_TIMEOUT_S), peer=self._peer)

    async def download(self, run: RunName, spec: ArtifactSpec, target: Path) -> Path:
        """``target``, which then holds bytes with the SHA-256 that the task announced."""
        what = "download the adapter"
        try:
            return await self._call(lambda: self._download(run, spec, target), what)
        except (DigestMismatch, StreamMalformed) as error:
            log.warning("downloading_again", why=error.message)
            return await self._call(lambda: self._download(run, spec, target), what)

    async def upload(self, header: pb.UpdateHeader, files: Sequence[Path]) -> None:
        """Goes on where an earlier upload of the same files broke, also one of an earlier process."""
        what = "upload the update"
        try:
            await self._call(lambda: self._upload(header, files), what)
        except (DigestMismatch, StreamMalformed) as error:
            # What had arrived before did not fit, and is gone from there: all of it, once more.
            log.warning("uploading_again", round=header.round, why=error.message)
            await self._call(lambda: self._upload(header, files), what)

    async def report(self, request: pb.ReportMetricsRequest) -> None:
        await self._call(
            lambda: self._stub.ReportMetrics(request, timeout=CALL_TIMEOUT_S, metadata=trace_metadata()),
            "report the evaluation",
        )

    async def _call(self, call: Callable[[], Awaitable[ResultT]], what: str) -> ResultT:
        return await call_with_retry(
            call, peer=self._peer, what=what, give_up_after_s=self._wait_s, before_retry=self._metrics.retries.inc
        )

    async def _upload(self, header: pb.UpdateHeader, files: Sequence[Path]) -> None:
        there = await self._stub.GetUpload(pb.GetUploadRequest(header=header), timeout=CALL_TIMEOUT_S)
        if there.accepted:
            return
        if there.received_bytes:
            log.info("upload_resumed", round=header.round, from_bytes=there.received_bytes)
        frames = _update_frames(header, files, there.received_bytes)
        await self._stub.UploadUpdate(frames, timeout=TRANSFER_TIMEOUT_S, metadata=trace_metadata())

    async def _download(self, run: RunName, spec: ArtifactSpec, target: Path) -> Path:
        request = pb.DownloadAdapterRequest(run=str(run), sha256=spec.sha256)
        with ArtifactReceiver([spec], [target], MAX_ADAPTER_BYTES) as receiver:
            async for response in self._stub.DownloadAdapter(
                request, timeout=TRANSFER_TIMEOUT_S, metadata=trace_metadata()
            ):
                if response.WhichOneof("frame") == "chunk":
                    receiver.add(response.chunk)
                else:
                    _check_header(response.header, spec)
            return receiver.finish()[0]


async def _update_frames(
    header: pb.UpdateHeader, files: Sequence[Path], start: int
) -> AsyncIterator[pb.UploadUpdateRequest]:
    yield pb.UploadUpdateRequest(header=header)
    for chunk in file_chunks(files, start):
        yield pb.UploadUpdateRequest(chunk=chunk)


def _check_header(header: ArtifactSpec, announced: ArtifactSpec) -> None:
    if not header.sha256:
        raise StreamMalformed("the aggregator sent an adapter without a header")
    if header.sha256 != announced.sha256:
        message = f"the aggregator sends the adapter {header.sha256}, where its task announced {announced.sha256}"
        raise DigestMismatch(message, announced=announced.sha256, received=header.sha256)
