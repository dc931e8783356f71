"""Whether a run can be run as configured. Each refusal names the field."""

import math

from fednano.errors import FieldInvalid, Unsupported
from fednano.v1 import run_pb2 as pb

SUPPORTED = (pb.METHOD_FEDNANO, pb.METHOD_FEDAVG)
MODALITIES = ("image", "text")
MAX_RANK = 1024
MAX_HIDDEN_SIZE = 65_536
MAX_CLIENTS = 10_000


def check_config(config: pb.RunConfig) -> None:
    """Raises FieldInvalid for a wrong field, Unsupported for a method that is not built yet."""
    _require(config.method != pb.METHOD_UNSPECIFIED, "method", "must be set, for example to METHOD_FEDNANO")
    if config.method not in SUPPORTED:
        name = pb.Method.Name(config.method) if config.method in pb.Method.values() else str(config.method)
        raise Unsupported(
            f"method {name} is not built yet: use METHOD_FEDNANO or METHOD_FEDAVG", field="method", value=name
        )
    _require(config.model_digest != "", "model_digest", "must be set: Model.digest of the language model")
    _require(1 <= config.round_count <= 1_000_000, "round_count", "must be 1 to 1000000")
    _require(1 <= config.clients_per_round <= MAX_CLIENTS, "clients_per_round", f"must be 1 to {MAX_CLIENTS}")
    most = config.clients_per_round
    _require(1 <= config.min_updates <= most, "min_updates", f"must be 1 to clients_per_round, which is {most}")
    for field in ("round_timeout", "join_timeout"):
        _require(getattr(config, field).ToMilliseconds() > 0, field, "must be more than 0 s")
    _check_adapter(config.adapter)
    _check_train(config.train)
    _check_fisher(config)
    _check_evaluate(config.evaluate)


def _check_adapter(adapter: pb.AdapterConfig) -> None:
    _require(1 <= adapter.rank <= MAX_RANK, "adapter.rank", f"must be 1 to {MAX_RANK}")
    _require(_is_positive(adapter.alpha), "adapter.alpha", "must be a number above 0")
    _require(1 <= adapter.hidden_size <= MAX_HIDDEN_SIZE, "adapter.hidden_size", f"must be 1 to {MAX_HIDDEN_SIZE}")
    modalities = list(adapter.modalities)
    known = bool(modalities) and set(modalities) <= set(MODALITIES) and len(set(modalities)) == len(modalities)
    _require(known, "adapter.modalities", f"must name one or more of {', '.join(MODALITIES)}, each once")


def _check_train(train: pb.TrainConfig) -> None:
    _require(train.local_epochs >= 0, "train.local_epochs", "must not be negative")
    _require(train.local_steps >= 0, "train.local_steps", "must not be negative")
    _require(train.local_epochs + train.local_steps > 0, "train.local_epochs", "must be 1 or more, or local_steps")
    _require(train.batch_size >= 1, "train.batch_size", "must be 1 or more")
    _require(_is_positive(train.learning_rate), "train.learning_rate", "must be a number above 0")
    _require(train.seed >= 0, "train.seed", "must not be negative")


def _check_fisher(config: pb.RunConfig) -> None:
    fisher = config.fisher
    _require(math.isfinite(fisher.floor) and fisher.floor >= 0, "fisher.floor", "must be a number from 0")
    _require(fisher.max_examples >= 0, "fisher.max_examples", "must not be negative")
    known = (pb.FisherConfig.NORMALIZATION_NONE, pb.FisherConfig.NORMALIZATION_L2)
    _require(
        config.method == pb.METHOD_FEDAVG or fisher.normalization in known,
        "fisher.normalization",
        "must be NORMALIZATION_NONE or NORMALIZATION_L2",
    )


def _check_evaluate(evaluate: pb.EvaluateConfig) -> None:
    _require(evaluate.every_rounds >= 0, "evaluate.every_rounds", "must not be negative")
    _require(evaluate.max_examples >= 0, "evaluate.max_examples", "must not be negative")
    _require(evaluate.max_new_tokens >= 1, "evaluate.max_new_tokens", "must be 1 or more")


def _is_positive(number: float) -> bool:
    return math.isfinite(number) and number > 0


def _require(holds: bool, field: str, words: str) -> None:
    if not holds:
        raise FieldInvalid(f"config.{field} {words}", field=f"run.config.{field}")
