"""AggregatorService: what clients call. Translates, and leaves deciding to the modules it calls."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext

from google.protobuf.duration_pb2 import Duration

from fednano.errors import FieldInvalid, ModelDigestMismatch, ResourceNotFound, RoundClosed, RunEnded
from fednano.names import ClientName, RoundName, RunName, check_id
from fednano.rpc.interceptor import Context
from fednano.security.identity import peer_identity
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import aggregator_service_pb2_grpc as pb_grpc
from fednano.v1 import run_pb2
from fednano.wire.artifacts import file_chunks
from services.aggregator.changes import wait_for
from services.aggregator.federation import Federation
from services.aggregator.intake import Intake
from services.aggregator.labels import check_counts, check_label
from services.aggregator.store import clients, participants, rounds, runs
from services.aggregator.store.lineages import is_own_adapter
from services.aggregator.store.situations import load_situation
from services.aggregator.tasks import adapter_spec, directive, next_task

# PollTask answers this long before the caller's deadline.
POLL_MARGIN_S = 2.0
HEARTBEATS_PER_LEASE = 3


class AggregatorServicer(pb_grpc.AggregatorServiceServicer):
    """Holds no state of its own, but for the uploads under way."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._intake = Intake(federation)

    async def JoinRun(self, request: pb.JoinRunRequest, context: Context) -> pb.JoinRunResponse:
        client_id = check_id(request.client_id, "client_id")
        if request.example_count < 1:
            raise FieldInvalid("example_count must be 1 or more: a client needs examples", field="example_count")
        check_label(request.display_name, "display_name")
        check_counts(request.parameter_counts, "parameter_counts")
        with self._federation.store.transaction() as connection:
            name = RunName.parse(request.run, "run").run if request.run else runs.newest_unended_run(connection)
            run = runs.load_run(connection, name)
            _check_joinable(run, request)
            client = clients.put_client(
                connection,
                ClientName(run=name, client=client_id),
                display_name=request.display_name,
                example_count=request.example_count,
                parameter_counts=request.parameter_counts,
            )
        self._federation.leases.hear(ClientName(run=name, client=client_id), step=0)
        self._federation.changes.notify(name)
        interval = Duration()
        interval.FromMilliseconds(int(1000 * self._federation.settings.lease_s / HEARTBEATS_PER_LEASE))
        return pb.JoinRunResponse(client=client, config=run.config, heartbeat_interval=interval)

    async def LeaveRun(self, request: pb.LeaveRunRequest, context: Context) -> pb.LeaveRunResponse:
        client = ClientName.parse(request.client, "client")
        with self._federation.store.transaction() as connection:
            clients.leave_run(connection, client)
        self._federation.changes.notify(client.run)
        return pb.LeaveRunResponse()

    async def SendHeartbeat(self, request: pb.SendHeartbeatRequest, context: Context) -> pb.SendHeartbeatResponse:
        client = ClientName.parse(request.client, "client")
        with self._federation.store.transaction() as connection:
            situation = load_situation(connection, client)
            has_returned = clients.renew_lease(connection, client, situation.client_state)
        self._federation.leases.hear(client, request.step)
        if has_returned:
            self._federation.changes.notify(client.run)
        return pb.SendHeartbeatResponse(directive=directive(situation, request.round))

    async def PollTask(self, request: pb.PollTaskRequest, context: Context) -> pb.PollTaskResponse:
        client = ClientName.parse(request.client, "client")
        deadline_s = time.monotonic() + self._poll_s(context)
        while True:
            ticket = self._federation.changes.task_ticket(client.run)
            with self._federation.store.transaction() as connection:
                situation = load_situation(connection, client)
                has_returned = clients.renew_lease(connection, client, situation.client_state)
            self._federation.leases.hear(client)
            if has_returned:
                self._federation.changes.notify(client.run)
            task = await asyncio.to_thread(next_task, situation, self._federation.artifacts)
            if task is not None or time.monotonic() >= deadline_s:
                return task or pb.PollTaskResponse()
            await self._wait_for_task(client, ticket, deadline_s)

    async def _wait_for_task(self, client: ClientName, ticket: asyncio.Event, deadline_s: float) -> None:
        """Until tasks may have changed. Who waits here is there."""
        lease_s = self._federation.settings.lease_s
        while not ticket.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
            await wait_for(ticket, min(left_s, lease_s / HEARTBEATS_PER_LEASE))
            self._federation.leases.hear(client)

    async def DownloadAdapter(
        self, request: pb.DownloadAdapterRequest, context: Context
    ) -> AsyncIterator[pb.DownloadAdapterResponse]:
        run, identity = RunName.parse(request.run, "run").run, peer_identity(context)
        client = None if identity is None else ClientName(run=run, client=identity.id)
        with self._federation.store.transaction() as connection:
            if client is not None:
                # What a run makes is for those who take part in it.
                clients.client_state(connection, client)
                clients.check_not_evicted(connection, client)
            is_known = rounds.is_global_adapter(connection, run, request.sha256) or is_own_adapter(
                connection, run, request.sha256, client
            )
        if not is_known:
            raise ResourceNotFound(f"{request.run} has no adapter {request.sha256}: poll for a task", name=request.run)
        async with self._federation.expulsions.transfer(client) if client is not None else nullcontext():
            path = await asyncio.to_thread(self._federation.artifacts.verified_path, request.sha256)
            # Written here, not yielded: whoever is put out while it waits for the client to read ends here too.
            await context.write(pb.DownloadAdapterResponse(header=adapter_spec(path, request.sha256)))
            for chunk in file_chunks([path]):
                await context.write(pb.DownloadAdapterResponse(chunk=chunk))
        left: tuple[pb.DownloadAdapterResponse, ...] = ()
        for response in left:
            yield response

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        return await self._intake.received(request.header)

    async def UploadUpdate(
        self, request_iterator: AsyncIterator[pb.UploadUpdateRequest], context: Context
    ) -> pb.UploadUpdateResponse:
        return pb.UploadUpdateResponse(update_count=await self._intake.take(aiter(request_iterator)))

    async def ReportMetrics(self, request: pb.ReportMetricsRequest, context: Context) -> pb.ReportMetricsResponse:
        client, name = ClientName.parse(request.client, "client"), RoundName.parse(request.round, "round")
        if name.run != client.run:
            raise FieldInvalid(f"round is {name}, but the client is {client}", field="round")
        with self._federation.store.transaction() as connection:
            state = rounds.load_head(connection, name).state
            participants.load_participation(connection, name, client)
            if request.kind == pb.ReportMetricsRequest.KIND_TRAINING:
                participants.record_training(connection, name, client, request.metrics)
            elif request.kind == pb.ReportMetricsRequest.KIND_EVALUATION:
                _check_evaluating(name, state)
                if participants.record_evaluation(connection, name, client, request.example_count, request.metrics):
                    rounds.announce_round(connection, name, client)
            else:
                raise FieldInvalid("kind must be KIND_TRAINING or KIND_EVALUATION", field="kind")
        self._federation.changes.notify(name.run)
        return pb.ReportMetricsResponse()

    def _poll_s(self, context: Context) -> float:
        left_s = context.time_remaining()
        longest_s = self._federation.settings.poll_s
        return longest_s if left_s is None else max(0.0, min(longest_s, float(left_s) - POLL_MARGIN_S))


def _check_joinable(run: run_pb2.Run, request: pb.JoinRunRequest) -> None:
    if run.state in runs.ENDED:
        state = run_pb2.Run.State.Name(run.state)
        raise RunEnded(f"{run.name} has ended: it is {state}; join another", name=run.name, state=state)
    if request.model_digest != run.config.model_digest:
        raise ModelDigestMismatch(
            f"{run.name} trains against the model {run.config.model_digest}, but the client's edge half fits "
            f"{request.model_digest}: start the client with the run's model",
            expected_digest=run.config.model_digest,
            actual_digest=request.model_digest,
        )


def _check_evaluating(name: RoundName, state: "run_pb2.Round.State.ValueType") -> None:
    if state != run_pb2.Round.STATE_EVALUATING:
        words = run_pb2.Round.State.Name(state)
        raise RoundClosed(f"{name} takes no evaluation: it is {words}; poll for a task", name=str(name), state=words)
