"""Whether a run can be run as configured. Each refusal names the field."""

import math

from fednano.errors import Unsupported
from fednano.merge.krum import least_krum_updates
from fednano.v1 import run_pb2 as pb
from services.aggregator.method_config_check import check_method_settings, require

SUPPORTED = (
    pb.METHOD_FEDNANO,
    pb.METHOD_FEDNANO_EF,
    pb.METHOD_FEDNANO_GRAM,
    pb.METHOD_FEDAVG,
    pb.METHOD_FEDPROX,
    pb.METHOD_FEDDPA_F,
    pb.METHOD_LOCAL,
    pb.METHOD_CENTRALIZED,
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
    require(config.model_digest != "", "model_digest", "must be set: Model.digest of the language model")
    require(1 <= config.round_count <= 1_000_000, "round_count", "must be 1 to 1000000")
    _check_clients(config)
    for field in ("round_timeout", "join_timeout"):
        require(getattr(config, field).ToMilliseconds() > 0, field, "must be more than 0 s")
    _check_adapter(config.adapter)
    _check_train(config.train)
    _check_merge(config)
    _check_evaluate(config.evaluate)
    check_method_settings(config)


def _check_method(method: "pb.Method.ValueType") -> None:
    require(method != pb.METHOD_UNSPECIFIED, "method", "must be set, for example to METHOD_FEDNANO")
    if method not in SUPPORTED:
        name = pb.Method.Name(method) if method in pb.Method.values() else str(method)
        known = ", ".join(pb.Method.Name(one) for one in SUPPORTED)
        raise Unsupported(f"method {name} is not built yet: use one of {known}", field="method", value=name)


def _check_clients(config: pb.RunConfig) -> None:
    """How many clients a round asks, needs, and takes updates from: each at least as many as the next."""
    asked, fraction = config.clients_per_round, config.client_fraction
    if fraction == 0:
        words = f"must be 1 to {MAX_CLIENTS}, or 0 with client_fraction set"
        require(1 <= asked <= MAX_CLIENTS, "clients_per_round", words)
    else:
        require(asked == 0, "clients_per_round", "must be 0 where client_fraction is set: one of the two decides")
        require(0 < fraction <= 1, "client_fraction", "must be above 0 and at most 1, or 0 with clients_per_round set")
    most = asked or MAX_CLIENTS
    words = f"clients_per_round, which is {most}" if asked else str(most)
    require(1 <= config.min_updates <= most, "min_updates", f"must be 1 to {words}")
    available = config.min_available_clients
    least = config.min_updates
    require(
        available == 0 or least <= available <= MAX_CLIENTS,
        "min_available_clients",
        f"must be 0 or min_updates, which is {least}, to {MAX_CLIENTS}",
    )


def _check_adapter(adapter: pb.AdapterConfig) -> None:
    require(1 <= adapter.rank <= MAX_RANK, "adapter.rank", f"must be 1 to {MAX_RANK}")
    require(_is_positive(adapter.alpha), "adapter.alpha", "must be a number above 0")
    require(1 <= adapter.hidden_size <= MAX_HIDDEN_SIZE, "adapter.hidden_size", f"must be 1 to {MAX_HIDDEN_SIZE}")
    modalities = list(adapter.modalities)
    known = bool(modalities) and set(modalities) <= set(MODALITIES) and len(set(modalities)) == len(modalities)
    require(known, "adapter.modalities", f"must name one or more of {', '.join(MODALITIES)}, each once")


def _check_train(train: pb.TrainConfig) -> None:
    require(train.local_epochs >= 0, "train.local_epochs", "must not be negative")
    require(train.local_steps >= 0, "train.local_steps", "must not be negative")
    require(train.local_epochs + train.local_steps > 0, "train.local_epochs", "must be 1 or more, or local_steps")
    require(train.batch_size >= 1, "train.batch_size", "must be 1 or more")
    require(_is_positive(train.learning_rate), "train.learning_rate", "must be a number above 0")
    require(train.seed >= 0, "train.seed", "must not be negative")


def _check_merge(config: pb.RunConfig) -> None:
    merge = config.merge
    norm = merge.max_update_norm
    require(math.isfinite(norm) and norm >= 0, "merge.max_update_norm", "must be a number from 0; 0 sets no bound")
    require(0 <= merge.trim_fraction < 0.5, "merge.trim_fraction", "must be from 0 and below 0.5")
    require(merge.krum_hostile_count >= 0, "merge.krum_hostile_count", "must not be negative")
    if config.method == pb.METHOD_KRUM:
        needed = least_krum_updates(merge.krum_hostile_count)
        words = f"must be {needed} or more: Krum needs 2 * krum_hostile_count + 3 updates"
        require(config.min_updates >= needed, "min_updates", words)


def _check_evaluate(evaluate: pb.EvaluateConfig) -> None:
    require(evaluate.every_rounds >= 0, "evaluate.every_rounds", "must not be negative")
    require(evaluate.max_examples >= 0, "evaluate.max_examples", "must not be negative")
    require(evaluate.max_new_tokens >= 1, "evaluate.max_new_tokens", "must be 1 or more")


def _is_positive(number: float) -> bool:
    return math.isfinite(number) and number > 0
