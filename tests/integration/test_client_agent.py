"""Whole agents with a real aggregator and a real LLM server, all in this process, on loopback."""

import asyncio
from pathlib import Path

import pytest
import torch
from agents_inside import PATIENCE_S, Peers, agent, asked, create, peers, run_config

from fednano.data.icon_federation import write_icon_federation
from fednano.errors import ModelDigestMismatch, PeerUnavailable
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import resolve_model
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as rpb
from services.client.agent import Agent


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(resolve_model("nano") / "server")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    write_icon_federation(folder, client_count=2, alpha=1.0, seed=0, train_count=32, val_count=2, test_count=12)
    return folder


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
