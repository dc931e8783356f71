"""Whether a run can be run as configured. Each refusal names the field."""

import math

from fednano.errors import FieldInvalid, Unsupported
from fednano.merge.krum import least_krum_updates
from fednano.v1 import run_pb2 as pb

SUPPORTED = (
    pb.METHOD_FEDNANO,
    pb.METHOD_FEDAVG,
    pb.METHOD_TRIMMED_MEAN,
    pb.METHOD_MEDIAN,
    pb.METHOD_KRUM,
)
MODALITIES = ("image", "text")
MAX_RANK = 1024
MAX_HIDDEN_SIZE = 65_536
MAX_CLIENTS = 10_000


def check_config(config: pb.RunConfig) -> None:
    """Raises FieldInvalid for a wrong field, Unsupported for a method that is not built yet."""
    _check_method(config.method)
    _require(config.model_digest != "", "model_digest", "must be set: Model.digest of the language model")
    _require(1 <= config.round_count <= 1_000_000, "round_count", "must be 1 to 1000000")
    _check_clients(config)
    for field in ("round_timeout", "join_timeout"):
        _require(getattr(config, field).ToMilliseconds() > 0, field, "must be more than 0 s")
    _check_adapter(config.adapter)
    _check_train(config.train)
    _check_fisher(config)
    _check_merge(config)
    _check_evaluate(config.evaluate)


def _check_method(method: "pb.Method.ValueType") -> None:
    _require(method != pb.METHOD_UNSPECIFIED, "method", "must be set, for example to METHOD_FEDNANO")
    if method not in SUPPORTED:
        name = pb.Method.Name(method) if method in pb.Method.values() else str(method)
        known = ", ".join(pb.Method.Name(one) for one in SUPPORTED)
        raise Unsupported(f"method {name} is not built yet: use one of {known}", field="method", value=name)


def _check_clients(config: pb.RunConfig) -> None:
    """How many clients a round asks, needs, and takes updates from: each at least as many as the next."""
    asked, fraction = config.clients_per_round, config.client_fraction
    if fraction == 0:
        words = f"must be 1 to {MAX_CLIENTS}, or 0 with client_fraction set"
        _require(1 <= asked <= MAX_CLIENTS, "clients_per_round", words)
    else:
        _require(asked == 0, "clients_per_round", "must be 0 where client_fraction is set: one of the two decides")
        _require(0 < fraction <= 1, "client_fraction", "must be above 0 and at most 1, or 0 with clients_per_round set")
    most = asked or MAX_CLIENTS
    words = f"clients_per_round, which is {most}" if asked else str(most)
    _require(1 <= config.min_updates <= most, "min_updates", f"must be 1 to {words}")
    available = config.min_available_clients
    least = config.min_updates
    _require(
        available == 0 or least <= available <= MAX_CLIENTS,
        "min_available_clients",
        f"must be 0 or min_updates, which is {least}, to {MAX_CLIENTS}",
    )


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
    _require(0 <= fisher.max_share <= 1, "fisher.max_share", "must be 0 to 1; 0 takes the default")
    known = (pb.FisherConfig.NORMALIZATION_NONE, pb.FisherConfig.NORMALIZATION_L2)
    _require(
        config.method != pb.METHOD_FEDNANO or fisher.normalization in known,
        "fisher.normalization",
        "must be NORMALIZATION_NONE or NORMALIZATION_L2",
    )


def _check_merge(config: pb.RunConfig) -> None:
    merge = config.merge
    norm = merge.max_update_norm
    _require(math.isfinite(norm) and norm >= 0, "merge.max_update_norm", "must be a number from 0; 0 sets no bound")
    _require(0 <= merge.trim_fraction < 0.5, "merge.trim_fraction", "must be from 0 and below 0.5")
    _require(merge.krum_hostile_count >= 0, "merge.krum_hostile_count", "must not be negative")
    if config.method == pb.METHOD_KRUM:
        needed = least_krum_updates(merge.krum_hostile_count)
        words = f"must be {needed} or more: Krum needs 2 * krum_hostile_count + 3 updates"
        _require(config.min_updates >= needed, "min_updates", words)


def _check_evaluate(evaluate: pb.EvaluateConfig) -> None:
    _require(evaluate.every_rounds >= 0, "evaluate.every_rounds", "must not be negative")
    _require(evaluate.max_examples >= 0, "evaluate.max_examples", "must not be negative")
    _require(evaluate.max_new_tokens >= 1, "evaluate.max_new_tokens", "must be 1 or more")


def _is_positive(number: float) -> bool:
    return math.isfinite(number) and number > 0


def _require(holds: bool, field: str, words: str) -> None:
    if not holds:
        raise FieldInvalid(f"config.{field} {words}", field=f"run.config.{field}")
