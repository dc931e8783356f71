"""A client's work in a run: task after task, until the run has ended."""

import asyncio
import random
import time
from pathlib import Path

from structlog.contextvars import bound_contextvars

from fednano.errors import (
    AlreadyExists,
    ClientNotSelected,
    DigestMismatch,
    FieldInvalid,
    RoundClosed,
    StreamMalformed,
    UpdateInvalid,
)
from fednano.names import ClientName, RoundName
from fednano.telemetry import get_logger
from fednano.tracing import span
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1.artifact_pb2 import ArtifactSpec
from fednano.wire.artifacts import spec_of_file
from services.client.aggregator_link import AggregatorLink
from services.client.local_work import LocalWork
from services.client.progress import Progress, RoundAbandoned
from services.client.update_files import Update

log = get_logger("client.tasks")

# From the aggregator, or from the LLM server where training diverged. The work done again would end the same.
REFUSALS = (UpdateInvalid, FieldInvalid, StreamMalformed, DigestMismatch, AlreadyExists, ClientNotSelected)
# The round goes on without this client's answer, which is no reason to stop.
ROUND_LOST = (RoundClosed, RoundAbandoned)
PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0


class TaskLoop:
    """Does one task at a time; ``folder`` holds the files of the round at hand."""

    def __init__(
        self, link: AggregatorLink, work: LocalWork, client: ClientName, progress: Progress, folder: Path
    ) -> None:
        self._link, self._work, self._client = link, work, client
        self._progress, self._folder = progress, folder
        # What was refused, by kind of task and round: it is not done again.
        self._given_up = ("", "")
        self._pause_s = PAUSE_S

    async def run(self) -> None:
        """Returns when the run has ended. Raises ClientEvicted, and whatever makes going on useless."""
        while True:
            task = await self._link.poll(self._client)
            if task.WhichOneof("task") == "end":
                log.info("end", run_state=run_pb2.Run.State.Name(task.end.run_state))
                return
            try:
                await self._do(task)
            except ROUND_LOST as error:
                log.warning("round_lost", error=type(error).__name__, why=str(error))
                await asyncio.sleep(PAUSE_S)
            finally:
                self._progress.end()

    async def _do(self, task: pb.PollTaskResponse) -> None:
        kind = task.WhichOneof("task")
        if kind is None:
            return
        round_name = task.train.round if kind == "train" else task.evaluate.round
        if (kind, round_name) == self._given_up:
            await self._wait_for_other_work(round_name)
            return
        self._pause_s = PAUSE_S
        with bound_contextvars(round=round_name), span("round", round=round_name, task=kind):
            try:
                await (self._train(task.train) if kind == "train" else self._evaluate(task.evaluate))
            except REFUSALS as refusal:
                self._given_up = kind, round_name
                log.warning("refused", task=kind, error=type(refusal).__name__, why=refusal.message)

    async def _wait_for_other_work(self, round_name: str) -> None:
        """Longer each time: the aggregator goes on asking for what was refused, until the round is over."""
        log.info("waiting", what="the end of a round in which the work was refused", round=round_name)
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    async def _train(self, task: pb.TrainTask) -> None:
        round_name = RoundName.parse(task.round, "train.round")
        self._progress.begin(task.round)
        adapter = await self._download(round_name, task.adapter)
        with span("local_training", round=task.round):
            update = await asyncio.to_thread(self._work.train, round_name, adapter, self._folder, task.artifacts)
        await self._link.upload(self._header(task, update), update.files)
        log.info("trained", metrics=update.metrics)
        self._progress.metrics.trained(update.metrics, time.monotonic() - self._progress.begin_s)

    def _header(self, task: pb.TrainTask, update: Update) -> pb.UpdateHeader:
        return pb.UpdateHeader(
            round=task.round,
            client=str(self._client),
            artifacts=[spec_of_file(path, kind) for path, kind in zip(update.files, update.kinds, strict=True)],
            example_count=update.example_count,
            metrics=update.metrics,
            base_adapter_sha256=task.adapter.sha256,
        )

    async def _evaluate(self, task: pb.EvaluateTask) -> None:
        self._progress.begin(task.round)
        round_name = RoundName.parse(task.round, "evaluate.round")
        adapter = await self._download(round_name, task.adapter)
        with span("evaluation", round=task.round):
            evaluation = await asyncio.to_thread(self._work.evaluate, round_name, adapter, self._folder)
        await self._link.report(
            pb.ReportMetricsRequest(
                client=str(self._client),
                round=task.round,
                kind=pb.ReportMetricsRequest.KIND_EVALUATION,
                example_count=evaluation.example_count,
                metrics=evaluation.metrics,
            )
        )
        log.info("evaluated", metrics=evaluation.metrics)
        self._progress.metrics.evaluated(evaluation.accuracy, evaluation.metrics)

    async def _download(self, round_name: RoundName, spec: ArtifactSpec) -> Path:
        return await self._link.download(round_name.parent, spec, self._folder / "global.safetensors")
