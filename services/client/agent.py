"""The client's life: wait for its peers, join a run, do task after task, leave when the run has ended."""

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

from fednano.errors import (
    AlreadyExists,
    ClientNotSelected,
    DigestMismatch,
    ResourceNotFound,
    RoundClosed,
    RunEnded,
    UpdateInvalid,
)
from fednano.names import ClientName, RoundName
from fednano.rpc.channels import open_channel, wait_until_serving
from fednano.rpc.retry import call_with_retry
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms
from fednano.telemetry import get_logger
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceStub
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER, ArtifactSpec
from fednano.v1.split_service_pb2 import GetModelRequest, Model
from fednano.v1.split_service_pb2_grpc import SplitServiceStub
from fednano.wire.artifacts import spec_of_file
from services.client.aggregator_link import CALL_TIMEOUT_S, AggregatorLink
from services.client.heartbeat import send_heartbeats
from services.client.joining import check_config, check_digest, join_request, load_holdings, parameter_counts
from services.client.local_work import Holdings, LocalWork
from services.client.progress import Progress, RoundAbandoned
from services.client.settings import ClientSettings

if TYPE_CHECKING:
    from fednano.v1.split_service_pb2_grpc import SplitServiceAsyncStub

log = get_logger("client.agent")

KINDS = (ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER)
# The round goes on without this client's answer, which is no reason to stop.
ROUND_LOST = (UpdateInvalid, RoundClosed, ClientNotSelected, AlreadyExists, DigestMismatch)
PAUSE_S = 1.0


class Agent:
    """One client of one run. ``run`` returns when the run has ended."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._progress = Progress()

    async def run(self) -> None:
        """Raises a FednanoError that says what to do where the client cannot go on."""
        settings = self._settings
        holdings = await asyncio.to_thread(load_holdings, settings)
        async with (
            open_channel(settings.server, settings.security) as server,
            open_channel(settings.aggregator, settings.security) as aggregator,
        ):
            split = SplitServiceStub(server)
            model = await self._wait_for_server(server, split, holdings)
            peer = f"the aggregator at {settings.aggregator}"
            log.info("waiting", what=peer)
            await wait_until_serving(aggregator, "fednano.v1.AggregatorService", peer, settings.aggregator_wait_s)
            link = AggregatorLink(AggregatorServiceStub(aggregator), peer=peer, wait_s=settings.aggregator_wait_s)
            with suppress(RunEnded):
                await self._take_part(link, split, model, holdings)
        log.info("run_ended")

    def abandon(self) -> None:
        """Ends the computing under way soon; the process is being stopped."""
        self._progress.abandoned.set()

    async def _wait_for_server(
        self, channel: grpc.aio.Channel, split: "SplitServiceAsyncStub", holdings: Holdings
    ) -> Model:
        peer = self._server_name
        log.info("waiting", what=peer)
        await wait_until_serving(channel, "fednano.v1.SplitService", peer, self._settings.server_wait_s)
        response = await call_with_retry(
            lambda: split.GetModel(GetModelRequest(), timeout=CALL_TIMEOUT_S),
            peer=peer,
            what="compare the models",
            give_up_after_s=self._settings.server_wait_s,
        )
        check_digest(response.model.digest, holdings.parts.manifest.digest, peer)
        return response.model

    async def _take_part(
        self, link: AggregatorLink, split: "SplitServiceAsyncStub", model: Model, holdings: Holdings
    ) -> None:
        joined = await self._join(link, holdings)
        client = ClientName.parse(joined.client.name, "client.name")
        terms = SessionTerms(
            manifest=holdings.parts.manifest,
            run=str(client.parent),
            peer=self._server_name,
            progress_timeout_s=self._settings.progress_timeout_s,
        )
        language = RemoteLanguageModel(
            split,
            asyncio.get_running_loop(),
            terms,
            give_up_after_s=self._settings.server_wait_s,
            abandoned=self._progress.abandoned,
        )
        work = LocalWork(
            holdings,
            joined.config,
            language,
            client_id=client.client,
            max_pass_tokens=model.max_pass_tokens,
            progress=self._progress,
        )
        interval_s = joined.heartbeat_interval.ToMilliseconds() / 1000
        heartbeats = asyncio.create_task(send_heartbeats(link, client, self._progress, interval_s))
        try:
            with tempfile.TemporaryDirectory(prefix="fednano-client-") as folder:
                await self._work_until_end(link, work, client, Path(folder))
        finally:
            heartbeats.cancel()
            language.close()
            with suppress(grpc.aio.AioRpcError):
                await link.leave(client)

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

    async def _work_until_end(self, link: AggregatorLink, work: LocalWork, client: ClientName, folder: Path) -> None:
        while True:
            task = await link.poll(client)
            kind = task.WhichOneof("task")
            if kind == "end":
                log.info("end", run_state=run_pb2.Run.State.Name(task.end.run_state))
                return
            try:
                if kind == "train":
                    await self._train(link, work, client, task.train, folder)
                elif kind == "evaluate":
                    await self._evaluate(link, work, client, task.evaluate, folder)
            except (*ROUND_LOST, RoundAbandoned) as error:
                log.warning("round_lost", error=type(error).__name__, why=str(error))
                await asyncio.sleep(PAUSE_S)
            finally:
                self._progress.end()

    async def _train(
        self, link: AggregatorLink, work: LocalWork, client: ClientName, task: pb.TrainTask, folder: Path
    ) -> None:
        round_name = RoundName.parse(task.round, "train.round")
        self._progress.begin(task.round)
        adapter = await self._download(link, round_name, task.adapter, folder)
        update = await asyncio.to_thread(work.train, round_name, adapter, folder)
        header = pb.UpdateHeader(
            round=task.round,
            client=str(client),
            artifacts=[spec_of_file(path, kind) for path, kind in zip(update.files, KINDS, strict=False)],
            example_count=update.example_count,
            metrics=update.metrics,
            base_adapter_sha256=task.adapter.sha256,
        )
        await link.upload(header, update.files)
        log.info("trained", round=task.round, metrics=update.metrics)

    async def _evaluate(
        self, link: AggregatorLink, work: LocalWork, client: ClientName, task: pb.EvaluateTask, folder: Path
    ) -> None:
        self._progress.begin(task.round)
        adapter = await self._download(link, RoundName.parse(task.round, "evaluate.round"), task.adapter, folder)
        evaluation = await asyncio.to_thread(work.evaluate, adapter)
        await link.report(
            pb.ReportMetricsRequest(
                client=str(client),
                round=task.round,
                kind=pb.ReportMetricsRequest.KIND_EVALUATION,
                example_count=evaluation.example_count,
                metrics=evaluation.metrics,
            )
        )
        log.info("evaluated", round=task.round, metrics=evaluation.metrics)

    async def _download(self, link: AggregatorLink, round_name: RoundName, spec: ArtifactSpec, folder: Path) -> Path:
        return await link.download(round_name.parent, spec, folder / "global.safetensors")

    @property
    def _server_name(self) -> str:
        return f"the LLM server at {self._settings.server}"
