"""Whole agents, a real aggregator and a real LLM server in this process, on loopback."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from fednano.model.language import LanguageModel
from fednano.model.parts import load_edge, resolve_model
from fednano.rpc.channels import open_channel
from fednano.rpc.server import serving
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as rpb
from fednano.v1.aggregator_service_pb2_grpc import add_AggregatorServiceServicer_to_server
from fednano.v1.run_service_pb2_grpc import RunServiceStub, add_RunServiceServicer_to_server
from fednano.v1.split_service_pb2_grpc import add_SplitServiceServicer_to_server
from services.aggregator.aggregator_servicer import AggregatorServicer
from services.aggregator.federation import open_federation
from services.aggregator.run_servicer import RunServicer
from services.aggregator.settings import AggregatorSettings
from services.client.agent import Agent
from services.client.settings import ClientSettings
from services.server.model_thread import ModelThread
from services.server.servicer import SplitServicer
from services.server.settings import ServerSettings, WireEncoding

PATIENCE_S = 60.0
SERVER_SETTINGS = ServerSettings(insecure=True)


@dataclass(frozen=True, kw_only=True)
class Peers:
    server: str
    aggregator: str
    examples: Path


@asynccontextmanager
async def peers(
    language: LanguageModel, state: Path, examples: Path, server_settings: ServerSettings = SERVER_SETTINGS
) -> AsyncIterator[Peers]:
    async with AsyncExitStack() as stack:
        thread = ModelThread(threads=1, max_queued=4, timeout_s=20.0)
        stack.callback(thread.close)
        split = SplitServicer(language, thread, server_settings)
        server = await _served(
            stack, {"fednano.v1.SplitService": lambda server: add_SplitServiceServicer_to_server(split, server)}
        )
        federation = open_federation(AggregatorSettings(insecure=True, state=state))
        stack.push_async_callback(federation.stop)
        work, operators = AggregatorServicer(federation), RunServicer(federation)
        aggregator = await _served(
            stack,
            {
                "fednano.v1.AggregatorService": lambda server: add_AggregatorServiceServicer_to_server(work, server),
                "fednano.v1.RunService": lambda server: add_RunServiceServicer_to_server(operators, server),
            },
        )
        yield Peers(server=server, aggregator=aggregator, examples=examples)


async def _served(stack: AsyncExitStack, services: dict[str, Callable[[grpc.aio.Server], None]]) -> str:
    context = serving(services, "127.0.0.1:0", SERVER_SETTINGS.security, grace_s=0.2)
    return (await stack.enter_async_context(context)).address


def agent(number: int, peers: Peers, run: str = "", wire_encoding: WireEncoding = "raw") -> Agent:
    return Agent(
        ClientSettings(
            insecure=True,
            client_id=f"client-{number}",
            run=run,
            examples=peers.examples / f"client-{number}",
            server=peers.server,
            aggregator=peers.aggregator,
            wire_encoding=wire_encoding,
            server_wait_s=20,
            aggregator_wait_s=20,
        )
    )


def run_config(**changes: object) -> run_pb2.RunConfig:
    config = run_pb2.RunConfig(
        model_digest=load_edge(resolve_model("nano") / "edge").manifest.digest,
        round_count=2,
        clients_per_round=2,
        min_updates=2,
        round_timeout=Duration(seconds=40),
        join_timeout=Duration(seconds=40),
        method=run_pb2.METHOD_FEDNANO,
        adapter=run_pb2.AdapterConfig(rank=4, alpha=8, modalities=["image", "text"], hidden_size=128),
        train=run_pb2.TrainConfig(local_epochs=1, batch_size=8, learning_rate=8e-3),
        fisher=run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_L2, floor=1.0),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=4),
    )
    config.MergeFrom(run_pb2.RunConfig(**changes))  # type: ignore[arg-type]
    return config


async def asked(peers: Peers, ask: Callable[[RunServiceStub], Any]) -> Any:
    async with open_channel(peers.aggregator, SERVER_SETTINGS.security) as channel:
        return await ask(RunServiceStub(channel))


async def create(peers: Peers, run_id: str, config: run_pb2.RunConfig) -> None:
    request = rpb.CreateRunRequest(run_id=run_id, run=run_pb2.Run(config=config))
    await asked(peers, lambda stub: stub.CreateRun(request, timeout=10))
