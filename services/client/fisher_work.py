"""A client's Fisher information in one round, as the run's FisherConfig asks for it."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fednano.fisher import FisherMean
from fednano.methods import fisher_point
from fednano.model.batch import EncodedExample
from fednano.model.edge import LanguageHalf, NanoEdge
from fednano.names import RoundName
from fednano.telemetry import get_logger
from fednano.v1 import run_pb2
from services.client.checkpoint import TrainingKey, replace_file
from services.client.examples import chosen
from services.client.fisher_pass import estimate_fisher
from services.client.fisher_path import FisherPath
from services.client.fitting import FittingSize
from services.client.trainer import example_order

log = get_logger("client.fisher")
AVERAGES = "fisher-average"
Point = run_pb2.FisherConfig


class FisherWork:
    """Of one client in one round."""

    def __init__(self, config: run_pb2.RunConfig, round_name: RoundName, client_id: str) -> None:
        self._config, self._round, self._client_id = config, round_name, client_id
        self.point = fisher_point(config)

    def path(self) -> FisherPath | None:
        """What local training is to gather, where that is when it is estimated."""
        if self.point != Point.POINT_PATH:
            return None
        return FisherPath(self._labels if self._is_drawn else None)

    def estimate(
        self,
        edge: NanoEdge,
        language: LanguageHalf,
        examples: Sequence[EncodedExample],
        *,
        max_pass_tokens: int,
        after_batch: Callable[[], None],
        fitting: FittingSize | None = None,
    ) -> FisherMean:
        """A pass of its own, at the adapters as they are."""
        limit = self._config.fisher.max_examples
        if 0 < limit < len(examples):
            random = self._generator("fisher")
            examples = chosen(examples, torch.randperm(len(examples), generator=random)[:limit].tolist())
        return estimate_fisher(
            edge,
            language,
            examples,
            max_pass_tokens=max_pass_tokens,
            after_batch=after_batch,
            labels=self._labels(0) if self._is_drawn else None,
            fitting=fitting,
        )

    def averaged(self, information: dict[str, Tensor], folder: Path, key: TrainingKey) -> dict[str, Tensor]:
        """The moving average over the client's rounds that ends with this one; kept in ``folder`` for the next.

        Another process without that folder begins a new one. Done again, it gives the same.
        """
        earlier_part = self._config.fisher.moving_average
        if not earlier_part:
            return information
        place = folder / AVERAGES
        earlier = _newest_before(place, self._round.number, key)
        if earlier is not None:
            information = {
                name: (earlier_part * earlier[name].double() + (1 - earlier_part) * tensor.double()).float()
                for name, tensor in information.items()
            }
        replace_file(_file_of(place, self._round.number), save(information, {"of": _owner(key)}))
        return information

    @property
    def _is_drawn(self) -> bool:
        return self._config.fisher.kind == Point.KIND_MC

    def _labels(self, step: int) -> torch.Generator:
        return self._generator(f"labels/{step}")

    def _generator(self, purpose: str) -> torch.Generator:
        return example_order(self._config.train.seed, self._round.number, f"{self._client_id}/{purpose}")


def fisher_metrics(mean: FisherMean) -> dict[str, float]:
    """How far to trust the estimate, where that can be said."""
    reliability = mean.reliability()
    return {} if math.isnan(reliability) else {"fisher/reliability": reliability}


def _newest_before(place: Path, number: int, key: TrainingKey) -> dict[str, Tensor] | None:
    """The average up to the client's last earlier round of this very run, if it is whole; older ones go."""
    numbers = sorted(int(path.stem) for path in place.glob("*.safetensors")) if place.is_dir() else []
    earlier = [one for one in numbers if one < number]
    for one in earlier[:-1]:
        _file_of(place, one).unlink()
    if not earlier:
        return None
    path = _file_of(place, earlier[-1])
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("of") == _owner(key):
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        log.warning("average_ignored", path=str(path), why=str(error))
    return None


def _file_of(place: Path, number: int) -> Path:
    return place / f"{number}.safetensors"


def _owner(key: TrainingKey) -> str:
    return json.dumps([key.client, key.config_sha256, key.examples_sha256])
