"""The client's life: wait for its peers, join a run, do task after task, leave when the run has ended."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import grpc.aio
from structlog.contextvars import bind_contextvars

from fednano.errors import ResourceNotFound, RunEnded, WireError
from fednano.names import ClientName
from fednano.rpc.channels import open_channel, wait_until_serving
from fednano.rpc.replicas import first_serving, open_replicas, replica_addresses
from fednano.rpc.retry import call_with_retry
from fednano.split.loss import LabelledLanguageModel
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms
from fednano.telemetry import get_logger
from fednano.tracing import span
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceStub
from fednano.v1.split_service_pb2 import GetModelRequest, Model
from fednano.v1.split_service_pb2_grpc import SplitServiceStub
from fednano.wire.encodings import ENCODINGS_BY_NAME
from services.client.aggregator_link import CALL_TIMEOUT_S, AggregatorLink
from services.client.heartbeat import send_heartbeats
from services.client.joining import (
    check_config,
    check_digest,
    check_encoding,
    join_request,
    load_holdings,
    parameter_counts,
)
from services.client.local_work import Holdings, LocalWork
from services.client.metrics import ClientMetrics
from services.client.progress import Progress, RoundAbandoned
from services.client.settings import ClientSettings
from services.client.task_loop import TaskLoop
from services.client.work_folder import work_folder

if TYPE_CHECKING:
    from fednano.v1.split_service_pb2_grpc import SplitServiceAsyncStub

log = get_logger("client.agent")

PAUSE_S = 1.0


class Agent:
    """One client of one run. ``run`` returns when the run has ended."""

    def __init__(self, settings: ClientSettings, metrics: ClientMetrics | None = None) -> None:
        self._settings = settings
        self._progress = Progress(metrics=metrics) if metrics else Progress()

    async def run(self) -> None:
        """Raises a FednanoError that says what to do where the client cannot go on."""
        settings = self._settings
        try:
            holdings = await asyncio.to_thread(load_holdings, settings, self._progress.check)
        except RoundAbandoned:
            return
        with closing(holdings):
            await self._live(holdings)

    async def _live(self, holdings: Holdings) -> None:
        settings = self._settings
        async with (
            open_replicas(replica_addresses(settings.server, settings.client_id), settings.security) as servers,
            open_channel(settings.aggregator, settings.security) as aggregator,
        ):
            model = await self._wait_for_server(servers, holdings)
            peer = f"the aggregator at {settings.aggregator}"
            log.info("waiting", what=peer)
            await wait_until_serving(aggregator, "fednano.v1.AggregatorService", peer, settings.aggregator_wait_s)
            link = AggregatorLink(
                AggregatorServiceStub(aggregator),
                peer=peer,
                wait_s=settings.aggregator_wait_s,
                metrics=self._progress.metrics,
            )
            with suppress(RunEnded):
                splits = [SplitServiceStub(server) for server in servers.values()]
                await self._take_part(link, splits, model, holdings)
        log.info("run_ended")

    def abandon(self) -> None:
        """Ends the computing under way soon; the process is being stopped."""
        self._progress.abandoned.set()

    async def _wait_for_server(self, servers: Mapping[str, grpc.aio.Channel], holdings: Holdings) -> Model:
        peer = self._server_name
        log.info("waiting", what=peer)
        serving = await first_serving(servers, "fednano.v1.SplitService", peer, self._settings.server_wait_s)
        split = SplitServiceStub(servers[serving])
        response = await call_with_retry(
            lambda: split.GetModel(GetModelRequest(), timeout=CALL_TIMEOUT_S),
            peer=peer,
            what="compare the models",
            give_up_after_s=self._settings.server_wait_s,
        )
        check_digest(response.model.digest, holdings.parts.manifest.digest, peer)
        check_encoding(response.model, self._settings.wire_encoding, peer)
        return response.model

    async def _take_part(
        self, link: AggregatorLink, splits: "Sequence[SplitServiceAsyncStub]", model: Model, holdings: Holdings
    ) -> None:
        joined = await self._join(link, holdings)
        client = ClientName.parse(joined.client.name, "client.name")
        bind_contextvars(run=str(client.parent), client=str(client))
        language = self._language(splits, holdings, client)
        work = LocalWork(
            holdings,
            joined.config,
            language,
            client_id=client.client,
            max_pass_tokens=model.max_pass_tokens,
            progress=self._progress,
            checkpoint_every_steps=self._settings.checkpoint_every_steps if self._settings.state else 0,
        )
        interval_s = joined.heartbeat_interval.ToMilliseconds() / 1000
        heartbeats = asyncio.create_task(send_heartbeats(link, client, self._progress, interval_s))
        try:
            with (
                work_folder(self._settings.state, client) as folder,
                span("run", run=str(client.parent), client=str(client)),
            ):
                await TaskLoop(link, work, client, self._progress, folder).run()
        finally:
            heartbeats.cancel()
            language.close()
            with suppress(WireError):
                await link.leave(client)

    def _language(
        self, splits: "Sequence[SplitServiceAsyncStub]", holdings: Holdings, client: ClientName
    ) -> RemoteLanguageModel:
        terms = SessionTerms(
            manifest=holdings.parts.manifest,
            run=str(client.parent),
            peer=self._server_name,
            encoding=ENCODINGS_BY_NAME[self._settings.wire_encoding],
            progress_timeout_s=self._settings.progress_timeout_s,
            loss_on_server=self._settings.loss_on_server,
        )
        language_class = LabelledLanguageModel if self._settings.loss_on_server else RemoteLanguageModel
        return language_class(
            splits[0],
            asyncio.get_running_loop(),
            terms,
            give_up_after_s=self._settings.server_wait_s,
            abandoned=self._progress.abandoned,
            replicas=splits[1:],
        )

    async def _join(self, link: AggregatorLink, holdings: Holdings) -> pb.JoinRunResponse:
        """Waits for the run to be created, as long as for a lost aggregator."""
        request = join_request(self._settings, holdings)
        deadline_s = asyncio.get_running_loop().time() + self._settings.aggregator_wait_s
        while True:
            try:
                joined = await link.join(request)
                check_config(joined.config, holdings)
            except ResourceNotFound as error:
                if asyncio.get_running_loop().time() > deadline_s:
                    raise
                log.info("waiting", what=self._settings.run or "any run", why=error.message)
                await asyncio.sleep(PAUSE_S)
            else:
                # Only now it is known how large the adapters are; joining again adds that.
                request.run = str(ClientName.parse(joined.client.name, "client.name").parent)
                request.parameter_counts.update(parameter_counts(holdings, joined.config.adapter))
                log.info("joined", client=joined.client.name)
                return await link.join(request)

    @property
    def _server_name(self) -> str:
        return f"the LLM server at {self._settings.server}"
