"""An operator's calls to a running federation. Every call may be repeated, and is while the aggregator is away."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc.aio

from fednano.cli.follow import ENDED, Stream, events_until_end
from fednano.errors import FednanoError, NoProgress, PeerUnavailable, StreamMalformed, WireError
from fednano.rpc.peer_channel import why_untrusted
from fednano.rpc.retry import call_with_retry
from fednano.v1 import enrollment_service_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc
from fednano.v1.enrollment_service_pb2_grpc import EnrollmentServiceStub
from fednano.wire.artifacts import ArtifactReceiver

if TYPE_CHECKING:
    from fednano.v1.enrollment_service_pb2_grpc import EnrollmentServiceAsyncStub

CALL_TIMEOUT_S = 10.0
TRANSFER_TIMEOUT_S = 300.0
MAX_ADAPTER_BYTES = 1 << 34
PAGE_SIZE = 100
MEASUREMENT_PAGE_SIZE = 1000


class Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


ResultT = TypeVar("ResultT")
PageT = TypeVar("PageT", bound=Page)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """RunService over one channel. ``peer`` is what a message calls the other end, its address included."""

    channel: grpc.aio.Channel
    peer: str
    # Seconds for which an aggregator that does not answer is tried.
    patience_s: float = 60.0

    @property
    def stub(self) -> "run_service_pb2_grpc.RunServiceAsyncStub":
        return run_service_pb2_grpc.RunServiceStub(self.channel)

    async def create(self, request: run_service_pb2.CreateRunRequest) -> run_pb2.Run:
        """``request`` needs a request_id: it is what makes repeating it safe."""
        return (await self._call("CreateRun", lambda: self.stub.CreateRun(request, timeout=CALL_TIMEOUT_S))).run

    async def run(self, name: str) -> run_pb2.Run:
        request = run_service_pb2.GetRunRequest(name=name)
        return (await self._call("GetRun", lambda: self.stub.GetRun(request, timeout=CALL_TIMEOUT_S))).run

    async def cancel(self, name: str) -> run_pb2.Run:
        request = run_service_pb2.CancelRunRequest(name=name)
        return (await self._call("CancelRun", lambda: self.stub.CancelRun(request, timeout=CALL_TIMEOUT_S))).run

    async def pause(self, name: str) -> run_pb2.Run:
        request = run_service_pb2.PauseRunRequest(name=name)
        return (await self._call("PauseRun", lambda: self.stub.PauseRun(request, timeout=CALL_TIMEOUT_S))).run

    async def resume(self, name: str) -> run_pb2.Run:
        request = run_service_pb2.ResumeRunRequest(name=name)
        return (await self._call("ResumeRun", lambda: self.stub.ResumeRun(request, timeout=CALL_TIMEOUT_S))).run

    async def round(self, name: str) -> run_pb2.Round:
        request = run_service_pb2.GetRoundRequest(name=name)
        return (await self._call("GetRound", lambda: self.stub.GetRound(request, timeout=CALL_TIMEOUT_S))).round

    async def client(self, name: str) -> run_pb2.Client:
        request = run_service_pb2.GetClientRequest(name=name)
        return (await self._call("GetClient", lambda: self.stub.GetClient(request, timeout=CALL_TIMEOUT_S))).client

    async def evict(self, name: str) -> run_pb2.Client:
        request = run_service_pb2.EvictClientRequest(name=name)
        return (await self._call("EvictClient", lambda: self.stub.EvictClient(request, timeout=CALL_TIMEOUT_S))).client

    async def create_join_token(
        self, request: enrollment_service_pb2.CreateJoinTokenRequest
    ) -> enrollment_service_pb2.CreateJoinTokenResponse:
        """Made again where the answer is lost: a token that nobody has expires."""
        stub: EnrollmentServiceAsyncStub = EnrollmentServiceStub(self.channel)
        return await self._call("CreateJoinToken", lambda: stub.CreateJoinToken(request, timeout=CALL_TIMEOUT_S))

    async def join_tokens(self) -> list[enrollment_service_pb2.JoinToken]:
        """All tokens that were ever made, oldest first."""
        stub: EnrollmentServiceAsyncStub = EnrollmentServiceStub(self.channel)

        def fetch(token: str) -> Awaitable[enrollment_service_pb2.ListJoinTokensResponse]:
            request = enrollment_service_pb2.ListJoinTokensRequest(page_size=PAGE_SIZE, page_token=token)
            return stub.ListJoinTokens(request, timeout=CALL_TIMEOUT_S)

        return [token async for page in self._pages("ListJoinTokens", fetch) for token in page.join_tokens]

    async def revoke_join_token(self, token_id: str) -> enrollment_service_pb2.JoinToken:
        stub: EnrollmentServiceAsyncStub = EnrollmentServiceStub(self.channel)
        request = enrollment_service_pb2.RevokeJoinTokenRequest(token_id=token_id)
        answer = await self._call("RevokeJoinToken", lambda: stub.RevokeJoinToken(request, timeout=CALL_TIMEOUT_S))
        return answer.join_token

    async def runs(self, limit: int) -> list[run_pb2.Run]:
        """The newest runs, at most ``limit``, newest first."""

        def fetch(token: str) -> Awaitable[run_service_pb2.ListRunsResponse]:
            request = run_service_pb2.ListRunsRequest(page_size=min(limit, PAGE_SIZE), page_token=token)
            return self.stub.ListRuns(request, timeout=CALL_TIMEOUT_S)

        found: list[run_pb2.Run] = []
        async for page in self._pages("ListRuns", fetch):
            found += page.runs
            if len(found) >= limit:
                break
        return found[:limit]

    async def rounds(self, name: str) -> list[run_pb2.Round]:
        """All rounds of a run, oldest first."""

        def fetch(token: str) -> Awaitable[run_service_pb2.ListRoundsResponse]:
            request = run_service_pb2.ListRoundsRequest(parent=name, page_size=PAGE_SIZE, page_token=token)
            return self.stub.ListRounds(request, timeout=CALL_TIMEOUT_S)

        return [turn async for page in self._pages("ListRounds", fetch) for turn in page.rounds]

    async def clients(self, name: str) -> list[run_pb2.Client]:
        """All clients that ever joined."""

        def fetch(token: str) -> Awaitable[run_service_pb2.ListClientsResponse]:
            request = run_service_pb2.ListClientsRequest(parent=name, page_size=PAGE_SIZE, page_token=token)
            return self.stub.ListClients(request, timeout=CALL_TIMEOUT_S)

        return [client async for page in self._pages("ListClients", fetch) for client in page.clients]

    async def measurements(self, name: str) -> AsyncIterator[run_pb2.Measurement]:
        """A run's whole history, oldest first, a page at a time."""

        def fetch(token: str) -> Awaitable[run_service_pb2.ListMeasurementsResponse]:
            size = MEASUREMENT_PAGE_SIZE
            request = run_service_pb2.ListMeasurementsRequest(parent=name, page_size=size, page_token=token)
            return self.stub.ListMeasurements(request, timeout=CALL_TIMEOUT_S)

        async for page in self._pages("ListMeasurements", fetch):
            for measurement in page.measurements:
                yield measurement

    async def follow(
        self,
        name: str,
        *,
        after_sequence: int = 0,
        silence_s: float | None = None,
        say: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[run_pb2.Event, None]:
        """Each event of a run once and in order, until the run has ended, across losses of the aggregator.

        Raises NoProgress when ``silence_s`` seconds pass without any event, PeerUnavailable when the aggregator stays
        away for longer than the operator's patience. ``say`` is told, in words, when it is lost.
        """

        def watch(after: int) -> Stream:
            return self.stub.WatchEvents(run_service_pb2.WatchEventsRequest(run=name, after_sequence=after))

        async def has_ended() -> bool:
            return (await self.run(name)).state in ENDED

        events = events_until_end(
            watch, has_ended, peer=self.peer, after_sequence=after_sequence, silence_s=silence_s, say=say
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def export(self, name: str, path: Path) -> str:
        """Writes the newest adapter of a run, or a round's, to ``path``: whole and with the announced digest, or not
        at all. Returns its SHA-256."""

        async def call() -> str:
            request = run_service_pb2.ExportAdapterRequest(name=name)
            frames = aiter(self.stub.ExportAdapter(request, timeout=TRANSFER_TIMEOUT_S))
            first = await anext(frames, None)
            if first is None or first.WhichOneof("frame") != "header":
                raise StreamMalformed(f"{self.peer} sent an adapter without a header")
            with ArtifactReceiver([first.header], [path], MAX_ADAPTER_BYTES) as receiver:
                async for response in frames:
                    receiver.add(response.chunk)
                receiver.finish()
            return first.header.sha256

        return await self._call("ExportAdapter", call)

    async def _pages(self, what: str, fetch: Callable[[str], Awaitable[PageT]]) -> AsyncIterator[PageT]:
        token = ""
        while True:
            page = await self._call(what, lambda token=token: fetch(token))  # type: ignore[misc]
            yield page
            token = page.next_page_token
            if not token:
                return

    async def _call(self, what: str, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        return await call_peer(call, self.channel, peer=self.peer, what=what, patience_s=self.patience_s)


async def call_peer(
    call: Callable[[], Awaitable[ResultT]], channel: grpc.aio.Channel, *, peer: str, what: str, patience_s: float
) -> ResultT:
    """The result of an idempotent call. Certificates that will not do end it at once: a person waits."""

    async def doubt() -> FednanoError | None:
        return await why_untrusted(channel, peer, only_sure=True)

    try:
        return await call_with_retry(call, peer=peer, what=what, give_up_after_s=patience_s, doubt=doubt)
    except (PeerUnavailable, NoProgress) as error:
        # What the peer said itself has no code.
        untrusted = await why_untrusted(channel, peer) if "code" in error.facts else None
        raise untrusted or explained(error, peer) from None


def explained(error: WireError, peer: str) -> WireError:
    """A failure of gRPC itself with what to check; what the peer said stays as it is."""
    if "code" not in error.facts:
        return error
    # gRPC tells the whole chain of causes; the last one is what happened.
    why = error.message.removeprefix(f"{peer}: ").rpartition("Failed to connect to remote host: ")[2]
    return PeerUnavailable(
        f"{peer} does not answer ({why}); check that it runs, that the address is the one it logs when it starts, "
        "and that both ends use certificates of one CA, or both --insecure",
        peer=peer,
    )
