"""RunService: what operators call. Translates, and leaves deciding to the modules it calls."""

import uuid
from collections.abc import AsyncIterator

from fednano.errors import AlreadyExists, FieldInvalid, ResourceNotFound
from fednano.names import RoundName, RunName, check_id
from fednano.rpc.interceptor import Context
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as pb
from fednano.v1 import run_service_pb2_grpc as pb_grpc
from fednano.wire.artifacts import file_chunks
from services.aggregator.changes import wait_for
from services.aggregator.federation import Federation
from services.aggregator.run_config_check import check_config
from services.aggregator.store import clients, rounds, runs
from services.aggregator.store.events import events_after
from services.aggregator.tasks import adapter_spec

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100
WATCH_WAIT_S = 5.0


class RunServicer(pb_grpc.RunServiceServicer):
    """Holds no state of its own."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.CreateRunResponse:
        check_config(request.run.config)
        run_id = check_id(request.run_id, "run_id") if request.run_id else f"run-{uuid.uuid4().hex[:12]}"
        with self._federation.store.transaction() as connection:
            known = runs.find_run_by_request(connection, request.request_id) if request.request_id else None
            if known is not None:
                return pb.CreateRunResponse(run=known)
            if runs.find_run(connection, run_id) is not None:
                message = f"{RunName(run=run_id)} exists already: choose another run_id, or none"
                raise AlreadyExists(message, name=str(RunName(run=run_id)))
            run = runs.insert_run(connection, run_id, request.run.display_name, request.run.config, request.request_id)
        self._federation.drive(run_id)
        return pb.CreateRunResponse(run=run)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        with self._federation.store.transaction() as connection:
            return pb.GetRunResponse(run=runs.load_run(connection, RunName.parse(request.name).run))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        offset, limit = _page(request.page_size, request.page_token)
        with self._federation.store.transaction() as connection:
            found = runs.list_runs(connection, offset, limit + 1)
        return pb.ListRunsResponse(runs=found[:limit], next_page_token=_next_token(found, offset, limit))

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        name = RunName.parse(request.name)
        with self._federation.store.transaction() as connection:
            run = runs.end_run(connection, name.run, run_pb2.Run.STATE_CANCELLED)
        self._federation.changes.notify(name.run)
        return pb.CancelRunResponse(run=run)

    async def GetRound(self, request: pb.GetRoundRequest, context: Context) -> pb.GetRoundResponse:
        with self._federation.store.transaction() as connection:
            return pb.GetRoundResponse(round=rounds.load_round(connection, RoundName.parse(request.name)))

    async def ListRounds(self, request: pb.ListRoundsRequest, context: Context) -> pb.ListRoundsResponse:
        run = RunName.parse(request.parent, "parent").run
        offset, limit = _page(request.page_size, request.page_token)
        with self._federation.store.transaction() as connection:
            runs.load_run(connection, run)
            found = rounds.list_rounds(connection, run, offset, limit + 1)
        return pb.ListRoundsResponse(rounds=found[:limit], next_page_token=_next_token(found, offset, limit))

    async def ListClients(self, request: pb.ListClientsRequest, context: Context) -> pb.ListClientsResponse:
        run = RunName.parse(request.parent, "parent").run
        offset, limit = _page(request.page_size, request.page_token)
        with self._federation.store.transaction() as connection:
            runs.load_run(connection, run)
            found = clients.list_clients(connection, run, offset, limit + 1)
        return pb.ListClientsResponse(clients=found[:limit], next_page_token=_next_token(found, offset, limit))

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        run, sequence = RunName.parse(request.run, "run").run, request.after_sequence
        while True:
            ticket = self._federation.changes.ticket(run)
            with self._federation.store.transaction() as connection:
                has_ended = runs.load_run(connection, run).state in runs.ENDED
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
        path = self._federation.artifacts.verified_path(sha256)
        yield pb.ExportAdapterResponse(header=adapter_spec(self._federation.artifacts, sha256))
        for chunk in file_chunks([path]):
            yield pb.ExportAdapterResponse(chunk=chunk)

    def _merged_sha256(self, name: str) -> str | None:
        with self._federation.store.transaction() as connection:
            if "/rounds/" in name:
                return rounds.load_round(connection, RoundName.parse(name)).merged_adapter_sha256
            run = RunName.parse(name).run
            runs.load_run(connection, run)
            return rounds.newest_merged_sha256(connection, run)


def _page(page_size: int, page_token: str) -> tuple[int, int]:
    """Offset and limit; raises FieldInvalid for a size below 0 or a token that is not ours."""
    if page_size < 0:
        raise FieldInvalid("page_size must not be negative", field="page_size")
    if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) < 10):
        raise FieldInvalid("page_token must be next_page_token of an earlier answer", field="page_token")
    return int(page_token or 0), min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def _next_token(found: list[run_pb2.Run] | list[run_pb2.Round] | list[run_pb2.Client], offset: int, limit: int) -> str:
    return str(offset + limit) if len(found) > limit else ""
