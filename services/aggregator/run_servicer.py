"""RunService: what operators call. Translates, and leaves deciding to the modules it calls."""

import asyncio
from collections.abc import AsyncIterator

from fednano.errors import FieldInvalid, ResourceNotFound
from fednano.names import ClientName, RoundName, RunName
from fednano.rpc.interceptor import Context
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as pb
from fednano.v1 import run_service_pb2_grpc as pb_grpc
from fednano.wire.artifacts import file_chunks
from services.aggregator.changes import wait_for
from services.aggregator.federation import Federation
from services.aggregator.pages import page
from services.aggregator.run_creation import create_run
from services.aggregator.steering import end_run, evict_client
from services.aggregator.store import clients, rounds, runs
from services.aggregator.store.events import events_after
from services.aggregator.store.measurements import list_measurements
from services.aggregator.tasks import adapter_spec

MEASUREMENTS_PAGE = 1000
WATCH_WAIT_S = 5.0


class RunServicer(pb_grpc.RunServiceServicer):
    """Holds no state of its own."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.CreateRunResponse:
        with self._federation.store.transaction() as connection:
            run = create_run(connection, request)
        if run.state not in runs.ENDED:
            self._federation.drive(RunName.parse(run.name).run)
        return pb.CreateRunResponse(run=run)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        with self._federation.store.transaction() as connection:
            return pb.GetRunResponse(run=runs.load_run(connection, RunName.parse(request.name).run))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        wanted = page(request.page_size, request.page_token)
        with self._federation.store.transaction() as connection:
            found = runs.list_runs(connection, before=wanted.after_id, limit=wanted.size + 1)
        shown, token = wanted.cut(found, lambda run: RunName.parse(run.name).run)
        return pb.ListRunsResponse(runs=shown, next_page_token=token)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        name = RunName.parse(request.name)
        with self._federation.store.transaction() as connection:
            run = end_run(connection, name.run, run_pb2.Run.STATE_CANCELLED)
        self._federation.changes.notify_tasks(name.run)
        return pb.CancelRunResponse(run=run)

    async def PauseRun(self, request: pb.PauseRunRequest, context: Context) -> pb.PauseRunResponse:
        name = RunName.parse(request.name)
        with self._federation.store.transaction() as connection:
            run = runs.pause_run(connection, name.run)
        self._federation.changes.notify(name.run)
        return pb.PauseRunResponse(run=run)

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.ResumeRunResponse:
        name = RunName.parse(request.name)
        with self._federation.store.transaction() as connection:
            run = runs.resume_run(connection, name.run)
        self._federation.changes.notify(name.run)
        return pb.ResumeRunResponse(run=run)

    async def GetRound(self, request: pb.GetRoundRequest, context: Context) -> pb.GetRoundResponse:
        with self._federation.store.transaction() as connection:
            return pb.GetRoundResponse(round=rounds.load_round(connection, RoundName.parse(request.name)))

    async def ListRounds(self, request: pb.ListRoundsRequest, context: Context) -> pb.ListRoundsResponse:
        run, wanted = RunName.parse(request.parent, "parent").run, page(request.page_size, request.page_token)
        with self._federation.store.transaction() as connection:
            runs.load_run(connection, run)
            shown = rounds.list_rounds(connection, run, after=wanted.after_number(0), limit=wanted.size)
            newest = rounds.newest_round(connection, run)
        is_last = newest is None or not shown or shown[-1].number == newest.name.number
        return pb.ListRoundsResponse(rounds=shown, next_page_token="" if is_last else str(shown[-1].number))

    async def GetClient(self, request: pb.GetClientRequest, context: Context) -> pb.GetClientResponse:
        name = ClientName.parse(request.name)
        with self._federation.store.transaction() as connection:
            self._federation.leases.flush(connection, name.run)
            return pb.GetClientResponse(client=clients.load_client(connection, name))

    async def ListClients(self, request: pb.ListClientsRequest, context: Context) -> pb.ListClientsResponse:
        run, wanted = RunName.parse(request.parent, "parent").run, page(request.page_size, request.page_token)
        with self._federation.store.transaction() as connection:
            runs.load_run(connection, run)
            self._federation.leases.flush(connection, run)
            found = clients.list_clients(connection, run, after=wanted.after_id, limit=wanted.size + 1)
        shown, token = wanted.cut(found, lambda client: ClientName.parse(client.name).client)
        return pb.ListClientsResponse(clients=shown, next_page_token=token)

    async def EvictClient(self, request: pb.EvictClientRequest, context: Context) -> pb.EvictClientResponse:
        name = ClientName.parse(request.name)
        with self._federation.store.transaction() as connection:
            client = evict_client(connection, name)
        self._federation.expulsions.expel(name)
        self._federation.changes.notify_tasks(name.run)
        return pb.EvictClientResponse(client=client)

    async def ListMeasurements(
        self, request: pb.ListMeasurementsRequest, context: Context
    ) -> pb.ListMeasurementsResponse:
        run = RunName.parse(request.parent, "parent").run
        wanted = page(request.page_size, request.page_token, default=MEASUREMENTS_PAGE, most=MEASUREMENTS_PAGE)
        with self._federation.store.transaction() as connection:
            runs.load_run(connection, run)
            found = list_measurements(connection, run, after=wanted.after_number(1), limit=wanted.size + 1)
        shown, token = wanted.cut(found, lambda measurement: measurement.sequence)
        return pb.ListMeasurementsResponse(measurements=shown, next_page_token=token)

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        run, sequence = RunName.parse(request.run, "run").run, request.after_sequence
        if sequence < 0:
            raise FieldInvalid("after_sequence must not be negative", field="after_sequence")
        while True:
            ticket = self._federation.changes.ticket(run)
            with self._federation.store.transaction() as connection:
                has_ended = runs.run_state(connection, run) in runs.ENDED
                events = events_after(connection, run, sequence)
            for event in events:
                sequence = event.sequence
                yield pb.WatchEventsResponse(event=event)
            if has_ended and not events:
                return
            if not events:
                await wait_for(ticket, WATCH_WAIT_S)

    async def ExportAdapter(
        self, request: pb.ExportAdapterRequest, context: Context
    ) -> AsyncIterator[pb.ExportAdapterResponse]:
        sha256 = self._merged_sha256(request.name)
        if not sha256:
            raise ResourceNotFound(f"{request.name} has no merged adapter yet: wait for a round", name=request.name)
        path = await asyncio.to_thread(self._federation.artifacts.verified_path, sha256)
        yield pb.ExportAdapterResponse(header=adapter_spec(path, sha256))
        for chunk in file_chunks([path]):
            yield pb.ExportAdapterResponse(chunk=chunk)

    def _merged_sha256(self, name: str) -> str | None:
        with self._federation.store.transaction() as connection:
            if "/rounds/" in name:
                return rounds.load_head(connection, RoundName.parse(name)).merged_sha256
            run = RunName.parse(name).run
            runs.run_state(connection, run)
            return rounds.newest_merged_sha256(connection, run)
