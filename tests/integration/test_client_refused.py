"""A client that the aggregator says no to: it neither burns its machine nor hangs."""

import asyncio
from pathlib import Path

import pytest
import torch
from agents_inside import PATIENCE_S, Peers, agent, asked, create, peers, run_config

from fednano.config import Security
from fednano.data.icon_federation import write_icon_federation
from fednano.errors import ClientEvicted
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import resolve_model
from fednano.rpc.channels import open_channel
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as rpb
from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceStub
from fednano.v1.error_reason_pb2 import ERROR_REASON_TOO_FEW_UPDATES
from fednano.v1.run_service_pb2_grpc import RunServiceStub


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(resolve_model("nano") / "server")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    write_icon_federation(folder, client_count=2, alpha=1.0, seed=0, train_count=64, val_count=2, test_count=12)
    return folder


async def test_a_client_whose_update_is_refused_does_not_train_for_that_round_again(
    tmp_path: Path, language: LanguageModel, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(round_count=1, clients_per_round=1, min_updates=1)
    config.round_timeout.seconds = 3
    async with peers(language, tmp_path, examples) as found:
        await create(found, "demo", config)
        life = asyncio.create_task(agent(1, found).run())
        await claim_fewer_examples(found, config)
        await asyncio.wait_for(life, PATIENCE_S)
        run, part = await ended(found)
    said = capsys.readouterr().out
    assert (run.state, run.failure.reason) == (run_pb2.Run.STATE_FAILED, ERROR_REASON_TOO_FEW_UPDATES)
    assert "must be 1 to 1" in part.refusal
    assert said.count("session_opened") == 1
    assert said.count(" refused ") == 1
    # Asked again and again, with growing pauses.
    assert 2 <= said.count("the work was refused") <= 8


async def claim_fewer_examples(found: Peers, config: run_pb2.RunConfig) -> None:
    """Joins in the client's name with a single example, once it has joined itself: more are not believed then."""
    claim = pb.JoinRunRequest(run="runs/demo", client_id="client-1", example_count=1, model_digest=config.model_digest)
    clients = rpb.ListClientsRequest(parent="runs/demo")
    async with open_channel(found.aggregator, Security(insecure=True)) as channel, asyncio.timeout(PATIENCE_S):
        while True:
            listed = (await RunServiceStub(channel).ListClients(clients, timeout=10)).clients
            if listed and listed[0].parameter_counts:
                break
            await asyncio.sleep(0.01)
        await AggregatorServiceStub(channel).JoinRun(claim, timeout=10)


async def test_a_client_whose_training_diverges_waits_for_other_work(
    tmp_path: Path, language: LanguageModel, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(round_count=1, clients_per_round=1, min_updates=1)
    config.round_timeout.seconds = 2
    # The second step overflows.
    config.train.learning_rate, config.adapter.alpha = 1e3, 1e38
    async with peers(language, tmp_path, examples) as found:
        await create(found, "demo", config)
        await asyncio.wait_for(agent(1, found).run(), PATIENCE_S)
        run, _ = await ended(found)
    assert (run.state, run.failure.reason) == (run_pb2.Run.STATE_FAILED, ERROR_REASON_TOO_FEW_UPDATES)
    said = capsys.readouterr().out
    assert said.count("did training diverge?") == 2, "the server's word and the client's"


async def ended(found: Peers) -> tuple[run_pb2.Run, run_pb2.Participant]:
    """The run, and its one client's part in round 1."""
    run = (await asked(found, lambda stub: stub.GetRun(rpb.GetRunRequest(name="runs/demo"), timeout=10))).run
    first = rpb.GetRoundRequest(name="runs/demo/rounds/1")
    (part,) = (await asked(found, lambda stub: stub.GetRound(first, timeout=10))).round.participants
    return run, part


async def test_a_client_that_is_evicted_ends_at_once_and_may_not_return(
    tmp_path: Path, language: LanguageModel, examples: Path
) -> None:
    async with peers(language, tmp_path, examples) as found:
        await create(found, "demo", run_config())
        life = asyncio.create_task(agent(1, found).run())
        await asyncio.sleep(1.5)
        evict = rpb.EvictClientRequest(name="runs/demo/clients/client-1")
        await asked(found, lambda stub: stub.EvictClient(evict, timeout=10))
        with pytest.raises(ClientEvicted, match="runs/demo/clients/client-1"):
            await asyncio.wait_for(life, PATIENCE_S)
        with pytest.raises(ClientEvicted):
            await asyncio.wait_for(agent(1, found, "runs/demo").run(), PATIENCE_S)
