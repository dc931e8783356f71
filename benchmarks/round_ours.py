"""Ours in the race: the aggregator as it is deployed, with its real settings, and one process for each client."""

import asyncio
import sys
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from benchmarks.certificates import Certificates
from benchmarks.round_arena import Arena
from benchmarks.round_payload import HIDDEN_SIZE, MODALITIES, RANK
from fednano.config import Security
from fednano.rpc.channels import open_channel
from fednano.security.identity import Role
from fednano.v1 import run_pb2, run_service_pb2
from fednano.v1.run_service_pb2_grpc import RunServiceStub

MODEL_DIGEST = "d" * 64
PATIENCE_S = 60


def absent() -> str:
    return ""


def start(arena: Arena) -> None:
    """The aggregator, a run, and the run's clients."""
    address = start_aggregator(arena)
    security = security_of(arena.certificates, Role.OPERATOR, "ada")
    asyncio.run(create_run(address, security, run_config(arena.clients, arena.total_rounds)))
    for client in range(arena.clients):
        place: tuple[str | Path, ...] = (
            "--address",
            address,
            "--marks",
            arena.marks,
            "--folder",
            arena.folder,
            "--client",
            str(client),
        )
        command = (sys.executable, "-m", "benchmarks.round_ours_client", *place)
        arena.spawn([*command, *security_flags(arena.certificates, Role.CLIENT, f"client-{client}")])


def start_aggregator(arena: Arena, *flags: str) -> str:
    """Returns its address."""
    ready = arena.folder / "ready"
    place: tuple[str | Path, ...] = (
        "--state",
        arena.folder / "state",
        "--listen",
        "127.0.0.1:0",
        "--ready-file",
        ready,
    )
    command = (sys.executable, "-m", "services.aggregator", *place, *flags)
    arena.spawn([*command, *security_flags(arena.certificates, Role.AGGREGATOR, "aggregator")], is_server=True)
    return arena.wait_for_file(ready)


def security_flags(certificates: Certificates | None, role: Role, holder_id: str) -> list[str | Path]:
    if certificates is None:
        return ["--insecure"]
    own = certificates.of(role, holder_id)
    return ["--tls-ca", own.authority, "--tls-cert", own.certificate, "--tls-key", own.key]


def security_of(certificates: Certificates | None, role: Role, holder_id: str) -> Security:
    if certificates is None:
        return Security(insecure=True)
    own = certificates.of(role, holder_id)
    return Security(tls_ca=own.authority, tls_cert=own.certificate, tls_key=own.key)


def run_config(clients: int, rounds: int) -> run_pb2.RunConfig:
    """A Fisher merge of every client's update in each round, evaluations only before the first and after the last."""
    return run_pb2.RunConfig(
        model_digest=MODEL_DIGEST,
        round_count=rounds,
        clients_per_round=clients,
        min_updates=clients,
        round_timeout=Duration(seconds=1200),
        join_timeout=Duration(seconds=PATIENCE_S),
        method=run_pb2.METHOD_FEDNANO,
        adapter=run_pb2.AdapterConfig(rank=RANK, alpha=2 * RANK, modalities=MODALITIES, hidden_size=HIDDEN_SIZE),
        train=run_pb2.TrainConfig(local_epochs=1, batch_size=8, learning_rate=1e-3, seed=7),
        fisher=run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_L2, floor=1.0),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=4),
    )


async def create_run(address: str, security: Security, config: run_pb2.RunConfig) -> str:
    """Returns the run's name."""
    request = run_service_pb2.CreateRunRequest(run_id="race", run=run_pb2.Run(config=config), request_id="race")
    async with open_channel(address, security) as channel:
        return (await RunServiceStub(channel).CreateRun(request, timeout=PATIENCE_S)).run.name
