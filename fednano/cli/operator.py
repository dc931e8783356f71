"""An operator's calls to a running federation: create a run, follow it, read it, export its adapter."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from fednano.errors import DigestMismatch, NoProgress, StreamMalformed, WireError
from fednano.rpc.retry import call_with_retry, is_retryable
from fednano.rpc.status import from_rpc_error
from fednano.v1 import artifact_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc

PEER = "the aggregator"
CALL_TIMEOUT_S = 10.0
GIVE_UP_AFTER_S = 60.0
RECONNECT_PAUSE_S = 0.3
ENDED = (run_pb2.Run.STATE_SUCCEEDED, run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """RunService over one channel; every call may be repeated and is, while the aggregator is away."""

    channel: grpc.aio.Channel

    @property
    def stub(self) -> "run_service_pb2_grpc.RunServiceAsyncStub":
        return run_service_pb2_grpc.RunServiceStub(self.channel)

    async def create(self, request: run_service_pb2.CreateRunRequest) -> run_pb2.Run:
        async def call() -> run_service_pb2.CreateRunResponse:
            return await self.stub.CreateRun(request, timeout=CALL_TIMEOUT_S)

        return (await call_with_retry(call, peer=PEER, what="CreateRun", give_up_after_s=GIVE_UP_AFTER_S)).run

    async def run(self, name: str) -> run_pb2.Run:
        async def call() -> run_service_pb2.GetRunResponse:
            return await self.stub.GetRun(run_service_pb2.GetRunRequest(name=name), timeout=CALL_TIMEOUT_S)

        return (await call_with_retry(call, peer=PEER, what="GetRun", give_up_after_s=GIVE_UP_AFTER_S)).run

    async def rounds(self, name: str) -> list[run_pb2.Round]:
        """All rounds of a run, oldest first."""
        found: list[run_pb2.Round] = []
        token = ""
        while True:
            request = run_service_pb2.ListRoundsRequest(parent=name, page_size=100, page_token=token)

            async def call(
                request: run_service_pb2.ListRoundsRequest = request,
            ) -> run_service_pb2.ListRoundsResponse:
                return await self.stub.ListRounds(request, timeout=CALL_TIMEOUT_S)

            page = await call_with_retry(call, peer=PEER, what="ListRounds", give_up_after_s=GIVE_UP_AFTER_S)
            found += page.rounds
            token = page.next_page_token
            if not token:
                return found

    async def clients(self, name: str) -> list[run_pb2.Client]:
        """The clients that ever joined; the first 100, and no demo has more."""
        request = run_service_pb2.ListClientsRequest(parent=name, page_size=100)

        async def call() -> run_service_pb2.ListClientsResponse:
            return await self.stub.ListClients(request, timeout=CALL_TIMEOUT_S)

        page = await call_with_retry(call, peer=PEER, what="ListClients", give_up_after_s=GIVE_UP_AFTER_S)
        return list(page.clients)

    async def follow(self, name: str, *, silence_s: float) -> AsyncIterator[run_pb2.Event]:
        """Each event of a run once and in order, until the run has ended, across losses of the aggregator.

        Raises NoProgress when ``silence_s`` seconds pass without any event.
        """
        last, deadline = 0, time.monotonic() + silence_s
        while True:
            request = run_service_pb2.WatchEventsRequest(run=name, after_sequence=last)
            stream = self.stub.WatchEvents(request)
            try:
                while (response := await _read(stream, deadline, name)) is not None:
                    if response.event.sequence > last:
                        last, deadline = response.event.sequence, time.monotonic() + silence_s
                        yield response.event
                    if response.event.run.state in ENDED:
                        return
            except grpc.aio.AioRpcError as error:
                _raise_unless_retryable(from_rpc_error(error, PEER))
            finally:
                stream.cancel()
            await asyncio.sleep(RECONNECT_PAUSE_S)

    async def export(self, name: str, path: Path) -> str:
        """Writes the run's newest adapter to ``path``; its SHA-256, checked against the bytes."""

        async def call() -> tuple[artifact_pb2.ArtifactSpec, bytes]:
            return await self._download(name)

        spec, content = await call_with_retry(call, peer=PEER, what="ExportAdapter", give_up_after_s=GIVE_UP_AFTER_S)
        found = hashlib.sha256(content).hexdigest()
        if found != spec.sha256:
            raise DigestMismatch(f"the adapter of {name} has SHA-256 {found}, announced was {spec.sha256}")
        await asyncio.to_thread(path.write_bytes, content)
        return found

    async def _download(self, name: str) -> tuple[artifact_pb2.ArtifactSpec, bytes]:
        spec, content = artifact_pb2.ArtifactSpec(), bytearray()
        request = run_service_pb2.ExportAdapterRequest(name=name)
        async for response in self.stub.ExportAdapter(request, timeout=GIVE_UP_AFTER_S):
            if response.WhichOneof("frame") == "header":
                spec = response.header
            elif response.chunk.offset != len(content) or len(content) + len(response.chunk.data) > spec.size_bytes:
                raise StreamMalformed(f"a chunk at {response.chunk.offset} after {len(content)} of {spec.size_bytes}")
            else:
                content += response.chunk.data
        return spec, bytes(content)


async def _read(
    stream: "grpc.aio.UnaryStreamCall[run_service_pb2.WatchEventsRequest, run_service_pb2.WatchEventsResponse]",
    deadline: float,
    name: str,
) -> run_service_pb2.WatchEventsResponse | None:
    """The next event, or None at the stream's end; NoProgress at the deadline."""
    try:
        answer = await asyncio.wait_for(stream.read(), max(0.1, deadline - time.monotonic()))
    except TimeoutError:
        raise NoProgress(f"no event of {name} for too long; see the logs of the parts") from None
    return answer if isinstance(answer, run_service_pb2.WatchEventsResponse) else None


def _raise_unless_retryable(error: WireError) -> None:
    if not is_retryable(error):
        raise error
