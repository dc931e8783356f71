"""Whole agents with a real aggregator and a real LLM server, all in this process, on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
import torch
from google.protobuf.duration_pb2 import Duration

from fednano.data.icon_federation import write_icon_federation
from fednano.errors import ModelDigestMismatch, PeerUnavailable
from fednano.model.language import LanguageModel, load_language_model
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
from services.server.settings import ServerSettings

PATIENCE_S = 60.0
SERVER_SETTINGS = ServerSettings(insecure=True)


@dataclass(frozen=True, kw_only=True)
class Peers:
    server: str
    aggregator: str
    examples: Path


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(resolve_model("nano") / "server")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    write_icon_federation(folder, client_count=2, alpha=1.0, seed=0, train_count=32, val_count=2, test_count=12)
    return folder


@asynccontextmanager
async def peers(language: LanguageModel, state: Path, examples: Path) -> AsyncIterator[Peers]:
    async with AsyncExitStack() as stack:
        thread = ModelThread(threads=1, max_queued=4, timeout_s=20.0)
        stack.callback(thread.close)
        split = SplitServicer(language, thread, SERVER_SETTINGS)
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


def agent(number: int, peers: Peers, run: str = "") -> Agent:
    return Agent(
        ClientSettings(
            insecure=True,
            client_id=f"client-{number}",
            run=run,
            examples=peers.examples / f"client-{number}",
            server=peers.server,
            aggregator=peers.aggregator,
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


async def asked(peers: Peers, ask: Callable[[RunServiceStub], Awaitable[object]]) -> object:
    async with open_channel(peers.aggregator, SERVER_SETTINGS.security) as channel:
        return await ask(RunServiceStub(channel))


async def create(peers: Peers, run_id: str, config: run_pb2.RunConfig) -> None:
    request = rpb.CreateRunRequest(run_id=run_id, run=run_pb2.Run(config=config))
    await asked(peers, lambda stub: stub.CreateRun(request, timeout=10))


@pytest.mark.parametrize("method", [run_pb2.METHOD_FEDNANO, run_pb2.METHOD_FEDAVG])
async def test_two_agents_do_a_run_to_its_end(
    tmp_path: Path, language: LanguageModel, examples: Path, method: run_pb2.Method.ValueType
) -> None:
    async with peers(language, tmp_path, examples) as found:
        await create(found, "demo", run_config(method=method))
        await asyncio.wait_for(asyncio.gather(agent(1, found).run(), agent(2, found).run()), PATIENCE_S)
        run = (await asked(found, lambda stub: stub.GetRun(rpb.GetRunRequest(name="runs/demo"), timeout=10))).run
        last = rpb.GetRoundRequest(name="runs/demo/rounds/2")
        metrics = (await asked(found, lambda stub: stub.GetRound(last, timeout=10))).round.metrics
        clients = rpb.ListClientsRequest(parent="runs/demo")
        counts = (await asked(found, lambda stub: stub.ListClients(clients, timeout=10))).clients[0].parameter_counts
    assert run.state == run_pb2.Run.STATE_SUCCEEDED
    assert {"train/loss", "test/accuracy", "bytes/activations", "bytes/gradients", "bytes/adapters"} <= set(metrics)
    assert (metrics["bytes/fisher"] > 0) == (method == run_pb2.METHOD_FEDNANO)
    assert counts["adapter"] == 2 * 2 * 4 * 128
    assert counts["edge"] > counts["adapter"]


async def test_an_agent_waits_for_a_run_to_be_created_and_leaves_when_it_is_cancelled(
    tmp_path: Path, language: LanguageModel, examples: Path
) -> None:
    async with peers(language, tmp_path, examples) as found:
        life = asyncio.create_task(agent(1, found).run())
        await asyncio.sleep(1)
        await create(found, "late", run_config())
        await asyncio.sleep(2)
        assert not life.done()
        cancel = rpb.CancelRunRequest(name="runs/late")
        await asked(found, lambda stub: stub.CancelRun(cancel, timeout=10))
        await asyncio.wait_for(life, PATIENCE_S)


async def test_an_agent_that_is_stopped_leaves_its_run(tmp_path: Path, language: LanguageModel, examples: Path) -> None:
    async with peers(language, tmp_path, examples) as found:
        await create(found, "demo", run_config())
        stopped = agent(1, found)
        life = asyncio.create_task(stopped.run())
        await asyncio.sleep(2)
        stopped.abandon()
        life.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(life, PATIENCE_S)
        clients = rpb.ListClientsRequest(parent="runs/demo")
        listed = (await asked(found, lambda stub: stub.ListClients(clients, timeout=10))).clients
    assert [client.state for client in listed] == [run_pb2.Client.STATE_LEFT]


async def test_an_agent_whose_run_has_another_model_says_so(
    tmp_path: Path, language: LanguageModel, examples: Path
) -> None:
    async with peers(language, tmp_path, examples) as found:
        await create(found, "demo", run_config(model_digest="0" * 64))
        with pytest.raises(ModelDigestMismatch, match="0" * 64):
            await asyncio.wait_for(agent(1, found).run(), PATIENCE_S)


async def test_an_agent_gives_up_a_server_that_never_serves_and_names_it(examples: Path) -> None:
    lost = Peers(server="127.0.0.1:1", aggregator="127.0.0.1:1", examples=examples)
    settings = agent(1, lost)._settings.model_copy(update={"server_wait_s": 0.3})
    with pytest.raises(PeerUnavailable, match=r"127\.0\.0\.1:1"):
        await asyncio.wait_for(Agent(settings).run(), PATIENCE_S)
