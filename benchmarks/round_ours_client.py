"""One client of ours in the race: the real link to the aggregator, and made-up updates instead of training."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc.aio
import numpy as np
from prometheus_client import CollectorRegistry
from safetensors.numpy import save_file

from benchmarks.round_marks import send_mark
from benchmarks.round_ours import MODEL_DIGEST
from benchmarks.round_payload import SHAPES, update_of
from fednano.config import Security
from fednano.names import ClientName, RoundName
from fednano.rpc.channels import open_channel
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import artifact_pb2
from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceStub
from fednano.wire.artifacts import spec_of_file
from services.client.aggregator_link import AggregatorLink
from services.client.metrics import ClientMetrics

KINDS = (artifact_pb2.ARTIFACT_KIND_ADAPTER, artifact_pb2.ARTIFACT_KIND_FISHER)
EXAMPLE_COUNT = 100
WAIT_S = 600.0


def link_over(channel: grpc.aio.Channel, address: str) -> AggregatorLink:
    return AggregatorLink(
        AggregatorServiceStub(channel),
        peer=f"the aggregator at {address}",
        wait_s=WAIT_S,
        metrics=ClientMetrics(CollectorRegistry()),
    )


async def join(link: AggregatorLink, client: int) -> ClientName:
    request = pb.JoinRunRequest(client_id=f"client-{client}", example_count=EXAMPLE_COUNT, model_digest=MODEL_DIGEST)
    return ClientName.parse((await link.join(request)).client.name)


def write_update(folder: Path, client: int) -> list[Path]:
    """The files of the client's adapter and Fisher information."""
    files = [folder / f"{client}-{kind}.safetensors" for kind in ("adapter", "fisher")]
    tensors = update_of(client)
    for file, part in zip(files, (tensors[: len(SHAPES)], tensors[len(SHAPES) :]), strict=True):
        save_file(dict(zip(SHAPES, part, strict=True)), file)
    return files


def renew(files: Sequence[Path], round_number: int) -> None:
    """Changes each file's last number, so that no store recognizes it from an earlier round."""
    for file in files:
        with file.open("r+b") as content:
            content.seek(-np.dtype(np.float32).itemsize, 2)
            content.write(np.float32(round_number).tobytes())


def header_of(task: pb.TrainTask, name: ClientName, files: Sequence[Path]) -> pb.UpdateHeader:
    return pb.UpdateHeader(
        round=task.round,
        client=str(name),
        artifacts=[spec_of_file(file, kind) for file, kind in zip(files, KINDS, strict=True)],
        example_count=EXAMPLE_COUNT,
        metrics={"train/loss": 1.0},
        base_adapter_sha256=task.adapter.sha256,
    )


def evaluation_of(task: pb.EvaluateTask, name: ClientName) -> pb.ReportMetricsRequest:
    return pb.ReportMetricsRequest(
        client=str(name),
        round=task.round,
        kind=pb.ReportMetricsRequest.KIND_EVALUATION,
        example_count=10,
        metrics={"test/accuracy": 0.5},
    )


async def _work(link: AggregatorLink, client: int, marks: Path, folder: Path) -> None:
    """Answers tasks until the run has ended."""
    files = write_update(folder, client)
    name = await join(link, client)
    while True:
        task = await link.poll(name)
        match task.WhichOneof("task"):
            case "train":
                round_name = RoundName.parse(task.train.round)
                send_mark(marks, round_name.number)
                await link.download(round_name.parent, task.train.adapter, folder / f"{client}-global.safetensors")
                renew(files, round_name.number)
                await link.upload(header_of(task.train, name, files), files)
            case "evaluate":
                await link.report(evaluation_of(task.evaluate, name))
            case "end":
                return


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--client", type=int, required=True)
    parser.add_argument("--insecure", action="store_true")
    for name in ("--marks", "--folder", "--tls-ca", "--tls-cert", "--tls-key"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    security = Security(insecure=given.insecure, tls_ca=given.tls_ca, tls_cert=given.tls_cert, tls_key=given.tls_key)
    async with open_channel(given.address, security) as channel:
        await _work(link_over(channel, given.address), given.client, given.marks, given.folder)


if __name__ == "__main__":
    asyncio.run(_main())
