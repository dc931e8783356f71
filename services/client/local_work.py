"""The computing part of a task, in a thread of its own: files in, files and measurements out. Knows no aggregator."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from safetensors.torch import load_file

from fednano.fisher import FisherMean
from fednano.methods import artifact_kinds, global_weight, is_personal, proximal_mu
from fednano.model.adapter import NanoAdapters
from fednano.model.edge import NanoEdge
from fednano.model.parts import EdgeParts
from fednano.names import RoundName
from fednano.split.remote import RemoteLanguageModel
from fednano.v1 import run_pb2
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER, ARTIFACT_KIND_GRAM, ArtifactKind
from fednano.wire.artifacts import file_sha256
from fednano.wire.encodings import ENCODING_NAMES
from services.client.checkpoint import TrainingKey
from services.client.evaluator import measure_accuracy
from services.client.examples import ExampleSet
from services.client.finished_update import FinishedUpdate
from services.client.fisher_path import FisherPath
from services.client.fisher_work import FisherWork, fisher_metrics
from services.client.fitting import FittingSize
from services.client.gram_pass import gram_matrices
from services.client.personal import combined, personal_training
from services.client.progress import Progress
from services.client.trainer import LocalTraining, example_order
from services.client.training_folder import TrainingFolder
from services.client.update_files import Update, file_metrics, has_kinds, update_in, write_artifact

Point = run_pb2.FisherConfig


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What the client holds and never sends: the edge half and its examples.

    ``tests_of`` is ``test`` by whose examples they were, where this client holds the pooled ones of several. ``split``
    is which split they are of.
    """

    parts: EdgeParts
    train: ExampleSet
    test: ExampleSet
    tests_of: Mapping[str, ExampleSet] = field(default_factory=dict)
    split: str = "test"

    def close(self) -> None:
        """Lets another process have what is kept of them on disk."""
        self.train.encoded.features.close()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    example_count: int
    accuracy: float
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
        # What the server keeps of a pass that broke off goes with the session.
        self._fitting = FittingSize("passes of the adapters", before_retry=language.close)

    def train(
        self,
        round_name: RoundName,
        adapter: Path,
        folder: Path,
        kinds: "Sequence[ArtifactKind.ValueType]" = (),
    ) -> Update:
        """Trains from ``adapter``; writes what the update is to hold to ``folder``: ``kinds``, or the method's own.

        Goes on from what an earlier process left in ``folder`` of the same training, to the same bits.
        """
        kinds = tuple(kinds) or artifact_kinds(self._config)
        place = self._place(folder, str(round_name), adapter)
        if (finished := place.finished()) is not None and has_kinds(finished, kinds):
            return update_in(folder, finished)
        self._begin(adapter)
        fisher = FisherWork(self._config, round_name, self._client_id) if ARTIFACT_KIND_FISHER in kinds else None
        estimate, metrics = self._pass_at(fisher, Point.POINT_START)
        path = fisher.path() if fisher else None
        metrics |= self._train_adapters(self._config.train, round_name, place, path=path)
        files = [write_artifact(folder, ARTIFACT_KIND_ADAPTER, self._edge.adapters.state_dict())]
        if fisher is not None:
            at_end, end_metrics = self._pass_at(fisher, Point.POINT_END)
            mean = path.mean if path else estimate or at_end
            assert mean is not None
            metrics |= end_metrics | fisher_metrics(mean)
            files.append(write_artifact(folder, ARTIFACT_KIND_FISHER, fisher.averaged(mean.mean(), folder, place.key)))
        if ARTIFACT_KIND_GRAM in kinds:
            files.append(self._write_grams(folder, metrics))
        self._language.close()
        finished = FinishedUpdate(
            key=place.key,
            files=tuple((path.name, file_sha256(path)) for path in files),
            example_count=len(self._holdings.train.encoded),
            metrics=metrics | _traffic_metrics(self._language) | file_metrics(adapter, files),
        )
        place.keep(finished)
        return update_in(folder, finished)

    def evaluate(self, round_name: RoundName, adapter: Path, folder: Path) -> Evaluation:
        """Measures the adapter; after the last round of FedDPA-F, what this client makes of it in ``folder``."""
        self._begin(adapter)
        is_own = is_personal(self._config, round_name.number)
        edge, metrics = self._personal(round_name, adapter, folder) if is_own else (self._edge, dict[str, float]())
        start_s = time.monotonic()
        holdings, limit = self._holdings, self._config.evaluate.max_examples
        owned = holdings.tests_of or {"": holdings.test}
        counts = {owner: min(limit or len(one.examples), len(one.examples)) for owner, one in owned.items()}
        accuracies = {owner: self._accuracy(edge, owned[owner], count) for owner, count in counts.items()}
        # Over clients, as it is where each measures its own.
        mean, split = fmean(accuracies.values()), holdings.split
        metrics |= {f"{split}/accuracy": mean, f"{split}/seconds": time.monotonic() - start_s}
        metrics |= {f"{split}/accuracy/{owner}": accuracy for owner, accuracy in accuracies.items() if owner}
        metrics["bytes/activations"] = float(self._language.traffic.activations_bytes)
        return Evaluation(example_count=sum(counts.values()), accuracy=mean, metrics=metrics)

    def _accuracy(self, edge: NanoEdge, tests: ExampleSet, example_count: int) -> float:
        return measure_accuracy(
            edge,
            self._language,
            tests,
            example_count=example_count,
            max_new_tokens=self._config.evaluate.max_new_tokens,
            max_pass_tokens=self._max_pass_tokens,
            after_batch=self._progress.check,
            fitting=self._fitting,
        )

    def _begin(self, adapter: Path) -> None:
        self._language.close()
        self._language.traffic.reset()
        self._edge.adapters.load_state_dict(load_file(adapter))

    def _train_adapters(
        self,
        config: run_pb2.TrainConfig,
        round_name: RoundName,
        place: TrainingFolder,
        *,
        path: FisherPath | None = None,
        purpose: str = "",
    ) -> dict[str, float]:
        """All steps that are not done yet; returns what was measured over all of them."""
        training = LocalTraining(
            self._edge,
            self._language,
            config,
            proximal_mu=proximal_mu(self._config),
            fisher=path,
            fitting=self._fitting,
        )
        traffic = self._language.traffic
        start_s = time.monotonic() - place.restore(training, traffic)
        self._progress.start_steps(training.position.step_count)

        def after_step() -> None:
            self._progress.end_step(training.position.step_count)
            place.save_if_due(training, traffic, time.monotonic() - start_s)
            self._progress.check()

        order = example_order(self._config.train.seed, round_name.number, f"{self._client_id}{purpose}")
        training.run(self._holdings.train.encoded, order=order, after_step=after_step)
        seconds = time.monotonic() - start_s
        place.save(training, traffic, seconds)
        steps = float(training.position.step_count)
        return {"train/loss": training.mean_loss, "train/steps": steps, "train/seconds": seconds}

    def _place(self, folder: Path, what: str, adapter: Path) -> TrainingFolder:
        key = TrainingKey(
            round=what,
            client=self._client_id,
            base_adapter_sha256=file_sha256(adapter),
            config_sha256=self._config_sha256,
            examples_sha256=self._examples_sha256,
            wire_encoding=ENCODING_NAMES[self._language.encoding],
        )
        return TrainingFolder(path=folder, key=key, every_steps=self._checkpoint_every_steps)

    def _pass_at(
        self, fisher: FisherWork | None, point: "run_pb2.FisherConfig.Point.ValueType"
    ) -> tuple[FisherMean | None, dict[str, float]]:
        """The estimate of a pass of its own, where that is when it is to be made."""
        if fisher is None or fisher.point != point:
            return None, {}
        start_s = time.monotonic()
        mean = fisher.estimate(
            self._edge,
            self._language,
            self._holdings.train.encoded,
            max_pass_tokens=self._max_pass_tokens,
            after_batch=self._progress.check,
            fitting=self._fitting,
        )
        return mean, {"fisher/seconds": time.monotonic() - start_s}

    def _write_grams(self, folder: Path, metrics: dict[str, float]) -> Path:
        """Adds what it measured to ``metrics``."""
        start_s = time.monotonic()
        packed = gram_matrices(self._edge, self._holdings.train.encoded, self._config.adapter, self._progress.check)
        metrics |= {"gram/seconds": time.monotonic() - start_s, "gram/relative_error": packed.relative_error}
        return write_artifact(folder, ARTIFACT_KIND_GRAM, packed.tensors)

    def _personal(self, round_name: RoundName, adapter: Path, folder: Path) -> tuple[NanoEdge, dict[str, float]]:
        """The edge with global and own adapter side by side, the own one tuned alone from a copy of the global one.

        Tuned once: an earlier process's is taken up where it is.
        """
        place = self._place(folder / "personal", f"{round_name}/personal", adapter)
        finished = place.finished()
        if finished is None:
            place.path.mkdir(parents=True, exist_ok=True)
            trained = self._train_adapters(personal_training(self._config), round_name, place, purpose="/personal")
            finished = self._keep_personal(place, trained)
        own = load_file(place.path / finished.files[0][0])
        both = combined(load_file(adapter), own, global_weight(self._config), self._config.adapter)
        return NanoEdge(self._holdings.parts, both), dict(finished.metrics)

    def _keep_personal(self, place: TrainingFolder, trained: Mapping[str, float]) -> FinishedUpdate:
        file = write_artifact(place.path, ARTIFACT_KIND_ADAPTER, self._edge.adapters.state_dict())
        metrics = {key.replace("train/", "personal/"): number for key, number in trained.items()}
        metrics["bytes/gradients"] = float(self._language.traffic.gradients_bytes)
        finished = FinishedUpdate(
            key=place.key,
            files=((file.name, file_sha256(file)),),
            example_count=len(self._holdings.train.encoded),
            metrics=metrics,
        )
        place.keep(finished)
        return finished


def new_adapters(config: run_pb2.AdapterConfig) -> NanoAdapters:
    return NanoAdapters(list(config.modalities), hidden_size=config.hidden_size, rank=config.rank, alpha=config.alpha)


def _traffic_metrics(language: RemoteLanguageModel) -> dict[str, float]:
    traffic = language.traffic
    return {
        "bytes/activations": float(traffic.activations_bytes),
        "bytes/gradients": float(traffic.gradients_bytes),
    }
