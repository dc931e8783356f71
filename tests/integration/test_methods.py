"""Every method, two rounds long, through a real aggregator, a real LLM server and whole agents, in this process."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from agents_inside import PATIENCE_S, Peers, agent, asked, create, peers, run_config

from fednano.data.icon_federation import write_icon_federation
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import resolve_model
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as rpb
from services.client.agent import Agent

Fisher = run_pb2.FisherConfig
LITERAL = Fisher(normalization=Fisher.NORMALIZATION_NONE, max_share=1.0)
BYTES_OF_AN_ADAPTER = 4 * 2 * 2 * 4 * 128


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(resolve_model("nano") / "server")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    write_icon_federation(folder, client_count=2, alpha=1.0, seed=0, train_count=32, val_count=2, test_count=12)
    return folder


class Finished:
    """A run of two rounds that has succeeded, and the aggregator's files."""

    def __init__(self, rounds: list[run_pb2.Round], artifacts: Path) -> None:
        self.rounds, self._artifacts = rounds, artifacts

    @property
    def last(self) -> run_pb2.Round:
        return self.rounds[-1]

    def merged(self, number: int) -> str:
        return self.rounds[number].merged_adapter_sha256

    def parts(self, number: int = 2) -> list[Mapping[str, float]]:
        return [part.metrics for part in self.rounds[number].participants]

    def adapters(self) -> int:
        """How many different files the aggregator keeps."""
        return sum(path.is_file() for path in self._artifacts.rglob("*"))


async def finish(language: LanguageModel, state: Path, examples: Path, config: run_pb2.RunConfig) -> Finished:
    async with peers(language, state, examples) as found:
        await create(found, "demo", config)
        await asyncio.wait_for(asyncio.gather(*(one.run() for one in agents(config, found))), PATIENCE_S)
        request = rpb.ListRoundsRequest(parent="runs/demo")
        rounds = (await asked(found, lambda stub: stub.ListRounds(request, timeout=10))).rounds
        run = (await asked(found, lambda stub: stub.GetRun(rpb.GetRunRequest(name="runs/demo"), timeout=10))).run
    assert run.state == run_pb2.Run.STATE_SUCCEEDED, run.failure.message
    return Finished(sorted(rounds, key=lambda turn: turn.number), state / "artifacts")


def agents(config: run_pb2.RunConfig, found: Peers) -> list[Agent]:
    if config.method != run_pb2.METHOD_CENTRALIZED:
        return [agent(number, found) for number in (1, 2)]
    settings = agent(1, found)._settings.model_copy(
        update={"client_id": "pooled", "examples": found.examples, "pooled": True}
    )
    return [Agent(settings)]


def a_run(method: "run_pb2.Method.ValueType", fisher: run_pb2.FisherConfig | None = None) -> run_pb2.RunConfig:
    config = run_config(method=method)
    if fisher is not None:
        config.fisher.CopyFrom(fisher)
    if method == run_pb2.METHOD_CENTRALIZED:
        config.clients_per_round = config.min_updates = 1
    return config


@pytest.fixture(scope="module")
def fedavg(language: LanguageModel, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    state = tmp_path_factory.mktemp("fedavg")
    return asyncio.run(finish(language, state, examples, a_run(run_pb2.METHOD_FEDAVG)))


@pytest.mark.parametrize(
    "fisher",
    [
        LITERAL,
        Fisher(normalization=Fisher.NORMALIZATION_RANK, at=Fisher.POINT_START, kind=Fisher.KIND_MC, max_examples=5),
        Fisher(normalization=Fisher.NORMALIZATION_L2, at=Fisher.POINT_PATH, kind=Fisher.KIND_MC, moving_average=0.5),
    ],
)
async def test_fednano_merges_by_fisher_and_tells_how_far_to_trust_it(
    tmp_path: Path, language: LanguageModel, examples: Path, fisher: run_pb2.FisherConfig
) -> None:
    done = await finish(language, tmp_path, examples, a_run(run_pb2.METHOD_FEDNANO, fisher))
    assert done.last.metrics["bytes/fisher"] >= 2 * BYTES_OF_AN_ADAPTER
    assert 1 <= done.last.metrics["fisher/effective_clients"] <= 2
    assert -1 <= done.last.metrics["fisher/reliability"] <= 1
    assert sum(part["fisher/share"] for part in done.parts()) == pytest.approx(1.0)
    assert ("fisher/seconds" in done.last.metrics) == (fisher.at != Fisher.POINT_PATH)


async def test_fednano_ef_gathers_while_it_trains(
    tmp_path: Path, language: LanguageModel, examples: Path, fedavg: Finished
) -> None:
    done = await finish(language, tmp_path, examples, a_run(run_pb2.METHOD_FEDNANO_EF, LITERAL))
    assert done.last.metrics["bytes/fisher"] >= 2 * BYTES_OF_AN_ADAPTER
    # No pass more than FedAvg's.
    assert done.last.metrics["bytes/gradients"] == fedavg.last.metrics["bytes/gradients"]
    assert "fisher/seconds" not in done.last.metrics
    assert done.merged(1) != fedavg.merged(1)


async def test_without_fisher_it_is_fedavg_bit_for_bit(
    tmp_path: Path, language: LanguageModel, examples: Path, fedavg: Finished
) -> None:
    ones = Fisher(kind=Fisher.KIND_ONES)
    done = await finish(language, tmp_path, examples, a_run(run_pb2.METHOD_FEDNANO, ones))
    assert [done.merged(number) for number in (1, 2)] == [fedavg.merged(number) for number in (1, 2)]
    assert done.last.metrics["bytes/fisher"] == 0


@pytest.mark.parametrize("mu", [0.0, 10.0])
async def test_fedprox_is_fedavg_bit_for_bit_at_mu_0_and_stays_nearer_with_mu(
    tmp_path: Path, language: LanguageModel, examples: Path, fedavg: Finished, mu: float
) -> None:
    config = a_run(run_pb2.METHOD_FEDPROX)
    config.train.proximal_mu = mu
    done = await finish(language, tmp_path, examples, config)
    assert (done.merged(2) == fedavg.merged(2)) == (mu == 0)
    if mu:
        for ours, theirs in zip(done.parts(1), fedavg.parts(1), strict=True):
            assert ours["merge/update_norm"] < theirs["merge/update_norm"]


async def test_fednano_gram_sends_gram_matrices_once_a_run(
    tmp_path: Path, language: LanguageModel, examples: Path, fedavg: Finished
) -> None:
    done = await finish(language, tmp_path, examples, a_run(run_pb2.METHOD_FEDNANO_GRAM))
    sent = [done.rounds[number].metrics.get("bytes/gram", 0.0) for number in (1, 2)]
    assert 0 < sent[0] <= 2 * 8 * (BYTES_OF_AN_ADAPTER + 400)
    assert sent[1] == 0
    # At rank 4, a hidden size of 128 is just too wide for a whole matrix.
    assert 0 < done.rounds[1].metrics["gram/relative_error"] < 0.01
    # Local training of the first round is FedAvg's; what is made of it is not.
    assert done.rounds[1].metrics["train/loss"] == fedavg.rounds[1].metrics["train/loss"]
    assert done.merged(1) != fedavg.merged(1)


async def test_feddpa_f_is_fedavg_until_each_client_tunes_its_own(
    tmp_path: Path, language: LanguageModel, examples: Path, fedavg: Finished
) -> None:
    done = await finish(language, tmp_path, examples, a_run(run_pb2.METHOD_FEDDPA_F))
    assert done.merged(2) == fedavg.merged(2)
    for part in done.parts():
        assert part["personal/loss"] > 0
        # Twice FedAvg's: the second stage is as long as a round.
        assert part["bytes/gradients"] == pytest.approx(2 * fedavg.parts()[0]["bytes/gradients"], rel=0.5)
    assert "personal/loss" not in done.rounds[1].metrics
    # Nothing but the initial adapter, two merged ones and four updates was ever sent.
    assert done.adapters() == fedavg.adapters() == 7


async def test_local_clients_go_on_from_their_own_and_nothing_is_merged(
    tmp_path: Path, language: LanguageModel, examples: Path, fedavg: Finished
) -> None:
    done = await finish(language, tmp_path, examples, a_run(run_pb2.METHOD_LOCAL))
    assert done.merged(0) == done.merged(1) == done.merged(2)
    assert done.rounds[1].metrics["train/loss"] == fedavg.rounds[1].metrics["train/loss"]
    assert done.last.metrics["train/loss"] < done.rounds[1].metrics["train/loss"]
    # The initial adapter and two of each client's.
    assert done.adapters() == 5


async def test_centralized_trains_on_all_and_measures_each_client_apart(
    tmp_path: Path, language: LanguageModel, examples: Path
) -> None:
    done = await finish(language, tmp_path, examples, a_run(run_pb2.METHOD_CENTRALIZED))
    (part,) = done.last.participants
    assert part.example_count == 32
    apart = [part.metrics[f"test/accuracy/client-{number}"] for number in (1, 2)]
    assert part.metrics["test/accuracy"] == pytest.approx(sum(apart) / 2)
