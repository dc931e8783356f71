"""The computing part of a task, in a thread of its own: files in, files and measurements out. Knows no aggregator."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fednano.model.adapter import NanoAdapters
from fednano.model.edge import NanoEdge
from fednano.model.parts import EdgeParts
from fednano.names import RoundName
from fednano.split.remote import RemoteLanguageModel
from fednano.v1 import run_pb2
from fednano.wire.artifacts import file_sha256
from fednano.wire.encodings import ENCODING_NAMES
from services.client.checkpoint import TrainingKey
from services.client.evaluator import measure_accuracy
from services.client.examples import ExampleSet
from services.client.finished_update import FinishedUpdate
from services.client.fisher_pass import fisher_information
from services.client.progress import Progress
from services.client.trainer import LocalTraining, example_order
from services.client.training_folder import TrainingFolder


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What the client holds and never sends: the edge half and its examples."""

    parts: EdgeParts
    train: ExampleSet
    test: ExampleSet


@dataclass(frozen=True, kw_only=True)
class Update:
    """The files to upload, the adapter first, and what was measured while they were made."""

    files: tuple[Path, ...]
    example_count: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    example_count: int
    metrics: dict[str, float]


class LocalWork:
    """Runs tasks one at a time. Ends early with RoundAbandoned where ``progress`` says so."""

    def __init__(
        self,
        holdings: Holdings,
        config: run_pb2.RunConfig,
        language: RemoteLanguageModel,
        *,
        client_id: str,
        max_pass_tokens: int,
        progress: Progress,
        checkpoint_every_steps: int = 0,
    ) -> None:
        """``checkpoint_every_steps`` 0: nothing is kept for a process that comes after this one."""
        self._holdings = holdings
        self._config = config
        self._language = language
        self._client_id = client_id
        self._max_pass_tokens = max_pass_tokens
        self._progress = progress
        self._checkpoint_every_steps = checkpoint_every_steps
        self._config_sha256 = hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest()
        self._examples_sha256 = holdings.train.sha256
        self._edge = NanoEdge(holdings.parts, new_adapters(config.adapter))

    def train(self, round_name: RoundName, adapter: Path, folder: Path) -> Update:
        """Trains from ``adapter``; writes the new one, and the Fisher information where it is used, to ``folder``.

        Goes on from what an earlier process left in ``folder`` of the same training, to the same bits.
        """
        place = TrainingFolder(
            path=folder, key=self._key(round_name, adapter), every_steps=self._checkpoint_every_steps
        )
        if (finished := place.finished()) is not None:
            return _update_in(folder, finished)
        self._begin(adapter)
        metrics = self._train_adapters(round_name, place)
        files = [_write(dict(self._edge.adapters.state_dict()), folder / "adapter.safetensors")]
        if self._config.method == run_pb2.METHOD_FEDNANO:
            start_s = time.monotonic()
            files.append(_write(self._fisher(round_name), folder / "fisher.safetensors"))
            metrics["fisher/seconds"] = time.monotonic() - start_s
        self._language.close()
        finished = FinishedUpdate(
            key=place.key,
            files=tuple((path.name, file_sha256(path)) for path in files),
            example_count=len(self._holdings.train.encoded),
            metrics=metrics | _traffic_metrics(self._language) | _file_metrics(adapter, files),
        )
        place.keep(finished)
        return _update_in(folder, finished)

    def evaluate(self, adapter: Path) -> Evaluation:
        evaluate, tests = self._config.evaluate, self._holdings.test
        example_count = min(evaluate.max_examples or len(tests.examples), len(tests.examples))
        self._begin(adapter)
        start_s = time.monotonic()
        accuracy = measure_accuracy(
            self._edge,
            self._language,
            tests,
            example_count=example_count,
            max_new_tokens=evaluate.max_new_tokens,
            max_pass_tokens=self._max_pass_tokens,
            after_batch=self._progress.check,
        )
        metrics = {"test/accuracy": accuracy, "test/seconds": time.monotonic() - start_s}
        metrics["bytes/activations"] = float(self._language.traffic.activations_bytes)
        return Evaluation(example_count=example_count, metrics=metrics)

    def _begin(self, adapter: Path) -> None:
        self._language.close()
        self._language.traffic.reset()
        self._edge.adapters.load_state_dict(load_file(adapter))

    def _train_adapters(self, round_name: RoundName, place: TrainingFolder) -> dict[str, float]:
        """All steps that are not done yet; returns what was measured over all of them."""
        training, traffic = LocalTraining(self._edge, self._language, self._config.train), self._language.traffic
        start_s = time.monotonic() - place.restore(training, traffic)
        self._progress.start_steps(training.position.step_count)

        def after_step() -> None:
            self._progress.end_step(training.position.step_count)
            place.save_if_due(training, traffic, time.monotonic() - start_s)
            self._progress.check()

        order = example_order(self._config.train.seed, round_name.number, self._client_id)
        training.run(self._holdings.train.encoded, order=order, after_step=after_step)
        seconds = time.monotonic() - start_s
        place.save(training, traffic, seconds)
        return {"train/loss": training.mean_loss, "train/seconds": seconds}

    def _key(self, round_name: RoundName, adapter: Path) -> TrainingKey:
        return TrainingKey(
            round=str(round_name),
            client=self._client_id,
            base_adapter_sha256=file_sha256(adapter),
            config_sha256=self._config_sha256,
            examples_sha256=self._examples_sha256,
            wire_encoding=ENCODING_NAMES[self._language.encoding],
        )

    def _fisher(self, round_name: RoundName) -> dict[str, Tensor]:
        examples = self._holdings.train.encoded
        limit = self._config.fisher.max_examples
        if 0 < limit < len(examples):
            random = example_order(self._config.train.seed, round_name.number, f"{self._client_id}/fisher")
            examples = tuple(examples[index] for index in torch.randperm(len(examples), generator=random)[:limit])
        return fisher_information(
            self._edge,
            self._language,
            examples,
            max_pass_tokens=self._max_pass_tokens,
            after_batch=self._progress.check,
        )


def new_adapters(config: run_pb2.AdapterConfig) -> NanoAdapters:
    return NanoAdapters(list(config.modalities), hidden_size=config.hidden_size, rank=config.rank, alpha=config.alpha)


def _write(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path)
    return path


def _update_in(folder: Path, finished: FinishedUpdate) -> Update:
    files = tuple(folder / name for name, _ in finished.files)
    return Update(files=files, example_count=finished.example_count, metrics=finished.metrics)


def _traffic_metrics(language: RemoteLanguageModel) -> dict[str, float]:
    traffic = language.traffic
    return {
        "bytes/activations": float(traffic.activations_bytes),
        "bytes/gradients": float(traffic.gradients_bytes),
    }


def _file_metrics(downloaded: Path, uploaded: list[Path]) -> dict[str, float]:
    adapter, *fisher = (path.stat().st_size for path in uploaded)
    return {"bytes/adapters": float(downloaded.stat().st_size + adapter), "bytes/fisher": float(sum(fisher))}
