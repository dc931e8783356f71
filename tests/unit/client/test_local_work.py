"""A task's computing part, on a small federation of icons, split over a real connection."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fednano.data.icon_federation import write_icon_federation
from fednano.errors import ExamplesInvalid, ModelDigestMismatch, Unsupported
from fednano.model.edge import NanoEdge
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import load_edge, resolve_model
from fednano.names import RoundName
from fednano.rpc.channels import open_channel
from fednano.rpc.server import serving
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms
from fednano.v1 import run_pb2
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_GRAM
from fednano.v1.split_service_pb2_grpc import SplitServiceStub, add_SplitServiceServicer_to_server
from services.client.examples import load_example_set
from services.client.fisher_pass import fisher_information
from services.client.joining import check_config, parameter_counts
from services.client.local_work import Holdings, LocalWork, new_adapters
from services.client.progress import Progress, RoundAbandoned
from services.server.model_thread import ModelThread
from services.server.servicer import SERVICE, SplitServicer
from services.server.settings import ServerSettings

ROUND = RoundName(run="demo", number=1)
ADAPTER_FILE = 4 * 2 * 2 * 4 * 128


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(resolve_model("nano") / "server")


@pytest.fixture(scope="module")
def holdings(tmp_path_factory: pytest.TempPathFactory) -> Holdings:
    (folder,) = write_icon_federation(
        tmp_path_factory.mktemp("icons"), client_count=1, alpha=1.0, seed=0, train_count=24, val_count=1, test_count=9
    )
    parts = load_edge(resolve_model("nano") / "edge")
    return Holdings(
        parts=parts, train=load_example_set(folder, "train", parts), test=load_example_set(folder, "test", parts)
    )


def config_of(holdings: Holdings) -> run_pb2.RunConfig:
    return run_pb2.RunConfig(
        model_digest=holdings.parts.manifest.digest,
        method=run_pb2.METHOD_FEDNANO,
        adapter=run_pb2.AdapterConfig(rank=4, alpha=8, modalities=["image", "text"], hidden_size=128),
        train=run_pb2.TrainConfig(local_epochs=1, batch_size=8, learning_rate=8e-3),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=4),
    )


@pytest.fixture
def initial_adapter(tmp_path: Path, holdings: Holdings) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "global.safetensors"
    save_file(dict(new_adapters(config_of(holdings).adapter).state_dict()), path)
    return path


@asynccontextmanager
async def local_work(
    holdings: Holdings,
    language: LanguageModel,
    progress: Progress,
    config: run_pb2.RunConfig | None = None,
    every_steps: int = 0,
) -> AsyncIterator[LocalWork]:
    settings = ServerSettings(insecure=True)
    thread = ModelThread(threads=1, max_queued=4, timeout_s=20.0)
    servicer = SplitServicer(language, thread, settings)
    services = {SERVICE: lambda server: add_SplitServiceServicer_to_server(servicer, server)}
    terms = SessionTerms(manifest=holdings.parts.manifest, run="runs/demo", peer="the server")
    try:
        async with (
            serving(services, "127.0.0.1:0", settings.security, grace_s=0.2) as running,
            open_channel(running.address, settings.security) as channel,
        ):
            remote = RemoteLanguageModel(SplitServiceStub(channel), asyncio.get_running_loop(), terms)
            yield LocalWork(
                holdings,
                config or config_of(holdings),
                remote,
                client_id="client-1",
                max_pass_tokens=500,
                progress=progress,
                checkpoint_every_steps=every_steps,
            )
            remote.close()
    finally:
        thread.close()


async def test_training_writes_an_adapter_and_its_fisher_information(
    tmp_path: Path, holdings: Holdings, language: LanguageModel, initial_adapter: Path
) -> None:
    progress = Progress()
    async with local_work(holdings, language, progress) as work:
        update = await asyncio.to_thread(work.train, ROUND, initial_adapter, tmp_path)
    adapter, fisher = map(load_file, update.files)
    before = load_file(initial_adapter)
    assert {name: tensor.shape for name, tensor in adapter.items()} == {
        name: tensor.shape for name, tensor in fisher.items()
    }
    assert all(not torch.equal(adapter[name], before[name]) for name in before)
    assert all(bool((tensor >= 0).all()) and float(tensor.sum()) > 0 for tensor in fisher.values())
    assert (update.example_count, progress.step) == (24, 3)
    assert set(update.metrics) == {
        "train/loss", "train/seconds", "train/steps", "fisher/seconds", "fisher/reliability",
        "bytes/activations", "bytes/gradients", "bytes/adapters", "bytes/fisher",
    }  # fmt: skip
    assert all(math.isfinite(value) and value > 0 for value in update.metrics.values())
    assert update.metrics["bytes/fisher"] >= ADAPTER_FILE


@pytest.mark.parametrize("at", [run_pb2.FisherConfig.POINT_START, run_pb2.FisherConfig.POINT_END])
async def test_fisher_information_is_that_of_the_adapter_before_or_after_training(
    tmp_path: Path,
    holdings: Holdings,
    language: LanguageModel,
    initial_adapter: Path,
    at: "run_pb2.FisherConfig.Point.ValueType",
) -> None:
    config = config_of(holdings)
    config.fisher.at = at
    async with local_work(holdings, language, Progress(), config) as work:
        update = await asyncio.to_thread(work.train, ROUND, initial_adapter, tmp_path)
    adapters = new_adapters(config.adapter)
    adapters.load_state_dict(load_file(initial_adapter if at == run_pb2.FisherConfig.POINT_START else update.files[0]))
    edge = NanoEdge(holdings.parts, adapters)
    expected = fisher_information(edge, language, holdings.train.encoded, max_pass_tokens=500, after_batch=lambda: None)
    for name, found in load_file(update.files[1]).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-9)


async def test_the_same_task_done_again_gives_the_same_bytes(
    tmp_path: Path, holdings: Holdings, language: LanguageModel, initial_adapter: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    async with local_work(holdings, language, Progress()) as work:
        for folder in folders:
            folder.mkdir()
            await asyncio.to_thread(work.train, ROUND, initial_adapter, folder)
    for name in ("adapter.safetensors", "fisher.safetensors"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second


async def test_an_evaluation_measures_the_test_split(
    tmp_path: Path, holdings: Holdings, language: LanguageModel, initial_adapter: Path
) -> None:
    async with local_work(holdings, language, Progress()) as work:
        evaluation = await asyncio.to_thread(work.evaluate, ROUND, initial_adapter, tmp_path)
    assert evaluation.example_count == 9
    assert set(evaluation.metrics) == {"test/accuracy", "test/seconds", "bytes/activations"}
    assert 0 <= evaluation.metrics["test/accuracy"] == evaluation.accuracy <= 1


async def test_an_evaluation_on_another_split_bears_its_name(
    tmp_path: Path, holdings: Holdings, language: LanguageModel, initial_adapter: Path
) -> None:
    async with local_work(replace(holdings, split="val"), language, Progress()) as work:
        evaluation = await asyncio.to_thread(work.evaluate, ROUND, initial_adapter, tmp_path)
    assert set(evaluation.metrics) == {"val/accuracy", "val/seconds", "bytes/activations"}


async def test_an_update_that_was_finished_without_what_is_now_asked_for_is_made_again(
    tmp_path: Path, holdings: Holdings, language: LanguageModel, initial_adapter: Path
) -> None:
    config = config_of(holdings)
    config.method = run_pb2.METHOD_FEDNANO_GRAM
    async with local_work(holdings, language, Progress(), config, every_steps=1) as work:
        short = await asyncio.to_thread(work.train, ROUND, initial_adapter, tmp_path, (ARTIFACT_KIND_ADAPTER,))
        kinds = (ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_GRAM)
        whole = await asyncio.to_thread(work.train, ROUND, initial_adapter, tmp_path, kinds)
        again = await asyncio.to_thread(work.train, ROUND, initial_adapter, tmp_path, kinds)
    assert (short.kinds, whole.kinds) == ((ARTIFACT_KIND_ADAPTER,), kinds)
    assert again == whole
    assert whole.metrics["train/loss"] == short.metrics["train/loss"]
    assert whole.metrics["bytes/gram"] <= 8 * whole.files[0].stat().st_size


async def test_the_second_stage_is_done_once_however_often_it_is_asked_for(
    tmp_path: Path, holdings: Holdings, language: LanguageModel, initial_adapter: Path
) -> None:
    config = config_of(holdings)
    config.method, config.round_count = run_pb2.METHOD_FEDDPA_F, 1
    async with local_work(holdings, language, Progress(), config, every_steps=1) as work:
        first = await asyncio.to_thread(work.evaluate, ROUND, initial_adapter, tmp_path)
        own = (tmp_path / "personal" / "adapter.safetensors").read_bytes()
    progress = Progress()
    async with local_work(holdings, language, progress, config, every_steps=1) as work:
        second = await asyncio.to_thread(work.evaluate, ROUND, initial_adapter, tmp_path)
    assert progress.step == 0
    assert second.metrics["test/accuracy"] == first.metrics["test/accuracy"]
    assert second.metrics["personal/seconds"] == first.metrics["personal/seconds"]
    assert own == (tmp_path / "personal" / "adapter.safetensors").read_bytes()


async def test_an_evaluation_before_the_last_round_has_no_second_stage(
    tmp_path: Path, holdings: Holdings, language: LanguageModel, initial_adapter: Path
) -> None:
    config = config_of(holdings)
    config.method, config.round_count = run_pb2.METHOD_FEDDPA_F, 2
    async with local_work(holdings, language, Progress(), config) as work:
        evaluation = await asyncio.to_thread(work.evaluate, ROUND, initial_adapter, tmp_path)
    assert "personal/loss" not in evaluation.metrics
    assert not (tmp_path / "personal").exists()


async def test_an_abandoned_round_ends_after_the_step_under_way(
    tmp_path: Path, holdings: Holdings, language: LanguageModel, initial_adapter: Path
) -> None:
    abandoned = threading.Event()
    abandoned.set()
    progress = Progress(abandoned=abandoned)
    async with local_work(holdings, language, progress) as work:
        with pytest.raises(RoundAbandoned):
            await asyncio.to_thread(work.train, ROUND, initial_adapter, tmp_path)
    assert progress.step == 1


def test_parameters_are_counted_once_each(holdings: Holdings) -> None:
    counts = parameter_counts(holdings, config_of(holdings).adapter)
    assert counts["adapter"] == ADAPTER_FILE // 4
    assert counts["edge"] > counts["adapter"]


def test_a_run_with_another_model_names_both_digests(holdings: Holdings) -> None:
    config = config_of(holdings)
    config.model_digest = "0" * 64
    with pytest.raises(ModelDigestMismatch) as raised:
        check_config(config, holdings)
    assert "0" * 64 in raised.value.message
    assert holdings.parts.manifest.digest in raised.value.message


def test_a_method_that_this_client_does_not_know_is_refused(holdings: Holdings) -> None:
    config = config_of(holdings)
    config.method = run_pb2.METHOD_UNSPECIFIED
    with pytest.raises(Unsupported, match="METHOD_UNSPECIFIED"):
        check_config(config, holdings)


def test_a_split_without_examples_is_refused_by_name(tmp_path: Path, holdings: Holdings) -> None:
    for name, text in (("problems.json", "{}"), ("pid2skills.json", "{}"), ("pid_splits.json", "{}")):
        (tmp_path / name).write_text(text)
    with pytest.raises(ExamplesInvalid, match="train"):
        load_example_set(tmp_path, "train", holdings.parts)
