"""The configuration of a run that `run create` makes: defaults, then a file, then flags."""

import json
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from google.protobuf import duration_pb2, json_format
from typer import Option

from fednano.cli.method_flags import NO_METHOD_FLAGS, MethodFlags, MethodName, set_method_settings
from fednano.errors import SettingsInvalid
from fednano.v1 import run_pb2

DEFAULT_CLIENTS = 2
DEFAULT_ROUNDS = 10
DEFAULT_TIMEOUT_S = 600
# What the contract's fields hold: a seed has 64 bits, every other whole number 32. Times of 68 years are long enough.
MOST, MOST_SEED = (1 << 31) - 1, (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class ConfigFlags:
    """What the flags say of a configuration; None where one was not given."""

    model_digest: Annotated[str | None, Option(help="Digest of the language model, without --server or --model.")] = (
        None
    )
    hidden_size: Annotated[int | None, Option(min=1, help="Its hidden size.")] = None
    method: Annotated[MethodName | None, Option(help="Federated algorithm. (fednano)")] = None
    rounds: Annotated[int | None, Option(min=1, help="Rounds of training. (10)")] = None
    clients: Annotated[int | None, Option(min=1, help="Clients asked in each round. (2)")] = None
    client_fraction: Annotated[float | None, Option(help="Or this part of the active clients, up to 1.")] = None
    min_updates: Annotated[int | None, Option(min=1, help="Updates a round needs. (more than half)")] = None
    min_available_clients: Annotated[int | None, Option(min=0, help="Active clients that a round waits for.")] = None
    round_timeout_s: Annotated[float | None, Option("--round-timeout", help="Seconds. (600)")] = None
    join_timeout_s: Annotated[float | None, Option("--join-timeout", help="Seconds. (600)")] = None
    rank: Annotated[int | None, Option(min=1, help="Rank of the adapters. (16)")] = None
    learning_rate: Annotated[float | None, Option(help="Of the clients' AdamW. (0.008)")] = None
    batch_size: Annotated[int | None, Option(min=1, help="Examples in a step. (8)")] = None
    local_epochs: Annotated[int | None, Option(min=0, help="Passes over a client's examples. (1)")] = None
    local_steps: Annotated[int | None, Option(min=0, help="Steps at most in a round, where set. (none)")] = None
    seed: Annotated[int | None, Option(min=0, help="Decides adapters, selection, order. (0)")] = None
    evaluate_every: Annotated[int | None, Option(min=0, help="Rounds between evaluations. (none)")] = None


def run_config(file: Path | None, flags: ConfigFlags, method_flags: MethodFlags = NO_METHOD_FLAGS) -> run_pb2.RunConfig:
    """A flag wins over the file, which wins over the default. The aggregator judges what comes of it."""
    _check_sizes(flags)
    _check_sizes(method_flags)
    config = _defaults()
    if file is not None:
        _read(file, config)
    _set_top(config, flags)
    _set_nested(config, flags)
    set_method_settings(config, method_flags)
    _complete(config)
    return config


def _check_sizes(flags: ConfigFlags | MethodFlags) -> None:
    """Raises SettingsInvalid for a number that no field can take, and for what is not one."""
    for field in fields(flags):
        value, most = getattr(flags, field.name), MOST_SEED if field.name == "seed" else MOST
        if isinstance(value, int | float) and not abs(value) <= most:
            flag = field.name.removesuffix("_s").replace("_", "-")
            raise SettingsInvalid(f"--{flag} must be a number of at most {most}, not {value}")


def _defaults() -> run_pb2.RunConfig:
    return run_pb2.RunConfig(
        round_count=DEFAULT_ROUNDS,
        round_timeout=duration_pb2.Duration(seconds=DEFAULT_TIMEOUT_S),
        join_timeout=duration_pb2.Duration(seconds=DEFAULT_TIMEOUT_S),
        method=run_pb2.METHOD_FEDNANO,
        adapter=run_pb2.AdapterConfig(rank=16, alpha=32, modalities=["image", "text"]),
        train=run_pb2.TrainConfig(local_epochs=1, batch_size=8, learning_rate=8e-3),
        fisher=run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_L2, floor=1.0),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=4),
    )


def _read(file: Path, config: run_pb2.RunConfig) -> None:
    """Takes a RunConfig in protobuf JSON, or TOML with the same names; SettingsInvalid names what is wrong with it."""
    if file.suffix not in (".json", ".toml"):
        raise SettingsInvalid(f"--config: {file} must end with .json or .toml")
    try:
        text = file.read_text()
        fields = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SettingsInvalid(f"--config: {file}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsInvalid(f"--config: {file}: {error}") from None
    if not isinstance(fields, dict):
        raise SettingsInvalid(f"--config: {file} must hold the fields of RunConfig, such as roundCount")
    try:
        json_format.ParseDict(fields, config)
    except json_format.ParseError as error:
        raise SettingsInvalid(f"--config: {file}: {error}") from None


def _set_top(config: run_pb2.RunConfig, flags: ConfigFlags) -> None:
    if flags.model_digest is not None:
        config.model_digest = flags.model_digest
    if flags.rounds is not None:
        config.round_count = flags.rounds
    if flags.clients is not None:
        config.clients_per_round, config.client_fraction = flags.clients, 0.0
    if flags.client_fraction is not None:
        config.clients_per_round, config.client_fraction = 0, flags.client_fraction
    if flags.min_updates is not None:
        config.min_updates = flags.min_updates
    if flags.min_available_clients is not None:
        config.min_available_clients = flags.min_available_clients
    if flags.round_timeout_s is not None:
        config.round_timeout.FromMilliseconds(round(1000 * flags.round_timeout_s))
    if flags.join_timeout_s is not None:
        config.join_timeout.FromMilliseconds(round(1000 * flags.join_timeout_s))
    if flags.method is not None:
        config.method = run_pb2.Method.Value(f"METHOD_{flags.method.name}")


def _set_nested(config: run_pb2.RunConfig, flags: ConfigFlags) -> None:
    if flags.hidden_size is not None:
        config.adapter.hidden_size = flags.hidden_size
    if flags.rank is not None:
        config.adapter.rank = flags.rank
    if flags.learning_rate is not None:
        config.train.learning_rate = flags.learning_rate
    if flags.batch_size is not None:
        config.train.batch_size = flags.batch_size
    if flags.local_epochs is not None:
        config.train.local_epochs = flags.local_epochs
    if flags.local_steps is not None:
        config.train.local_steps = flags.local_steps
    if flags.seed is not None:
        config.train.seed = flags.seed
    if flags.evaluate_every is not None:
        config.evaluate.every_rounds = flags.evaluate_every


def _complete(config: run_pb2.RunConfig) -> None:
    """What follows from other fields: a round goes on without less than half of its clients."""
    if not config.clients_per_round and not config.client_fraction:
        is_pooled = config.method == run_pb2.METHOD_CENTRALIZED
        config.clients_per_round = 1 if is_pooled else DEFAULT_CLIENTS
    if not config.min_updates:
        config.min_updates = config.clients_per_round // 2 + 1 if config.clients_per_round else 1
