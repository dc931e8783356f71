"""What a demo is asked to do, and the run's configuration that follows from it."""

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from google.protobuf import duration_pb2

from fednano.cli.method_flags import NO_METHOD_FLAGS, MethodFlags, set_method_settings
from fednano.cli.presets import DEFAULT, PRESETS, DemoPreset
from fednano.v1 import run_pb2, split_service_pb2

RUN_ID = "demo"
RUN_NAME = f"runs/{RUN_ID}"
OWN_ROUND_TIMEOUT_S = 3600
JOIN_TIMEOUT_S = 120


# Of fedprox alone.
PROXIMAL_MU = 0.01
# The one client that holds everybody's examples.
POOLED_CLIENT = "pooled"


class WireEncoding(StrEnum):
    """How tensors travel between clients and LLM server."""

    RAW = "raw"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"


class DemoMethod(StrEnum):
    """The federated algorithms that the demo offers."""

    FEDNANO = "fednano"
    FEDNANO_EF = "fednano_ef"
    FEDNANO_GRAM = "fednano_gram"
    FEDAVG = "fedavg"
    FEDPROX = "fedprox"
    FEDDPA_F = "feddpa_f"
    LOCAL = "local"
    CENTRALIZED = "centralized"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Everything that decides the demo's result, and where it goes. ``alpha`` is the Dirichlet split's."""

    out: Path
    clients: int = 5
    rounds: int = 10
    method: DemoMethod = DemoMethod.FEDNANO
    seed: int = 0
    alpha: float = 1.0
    train_examples: int = 1000
    preset: str = DEFAULT
    # A folder of the user's own, instead of generated icons.
    examples: Path | None = None
    minimum_share: float = 0.3
    model: str = "nano"
    wire_encoding: WireEncoding = WireEncoding.RAW
    # What the method is told besides its defaults.
    method_flags: MethodFlags = NO_METHOD_FLAGS
    fresh: bool = False

    @property
    def defaults(self) -> DemoPreset:
        return PRESETS[self.preset]

    @property
    def round_timeout_s(self) -> int:
        """Nobody knows how long a user's own examples take."""
        return self.defaults.round_timeout_s if self.examples is None else OWN_ROUND_TIMEOUT_S

    @property
    def example_folders(self) -> dict[str, Path]:
        """Each client process and its folder of examples; of ``centralized`` the one with all folders in it."""
        folder = self.out / "examples"
        if self.method is DemoMethod.CENTRALIZED:
            return {POOLED_CLIENT: folder}
        return {f"client-{number}": folder / f"client-{number}" for number in range(1, self.clients + 1)}

    @property
    def fingerprint(self) -> str:
        """A digest of what decides the result: an unfinished demo may be continued only where it is the same."""
        deciding = {name: value for name, value in asdict(self).items() if name not in ("out", "fresh")}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()


def request_id(options: DemoOptions) -> str:
    """The UUID of the demo's CreateRun: the same options make the same request, so repeating it creates nothing."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"fednano/demo/{options.fingerprint}"))


def run_config(options: DemoOptions, model: split_service_pb2.Model) -> run_pb2.RunConfig:
    """The run that the demo creates: all clients train in every round, with the settings that validation chose.

    What the user told the method counts for more.
    """
    process_count = len(options.example_folders)
    config = run_pb2.RunConfig(
        model_digest=model.digest,
        round_count=options.rounds,
        clients_per_round=process_count,
        min_updates=process_count,
        round_timeout=duration_pb2.Duration(seconds=options.round_timeout_s),
        join_timeout=duration_pb2.Duration(seconds=JOIN_TIMEOUT_S),
        method=run_pb2.Method.Value(f"METHOD_{options.method.name}"),
        adapter=run_pb2.AdapterConfig(rank=16, alpha=32, modalities=["image", "text"], hidden_size=model.hidden_size),
        train=run_pb2.TrainConfig(
            local_epochs=1,
            batch_size=options.defaults.batch_size,
            learning_rate=options.defaults.learning_rate,
            seed=options.seed,
            proximal_mu=PROXIMAL_MU if options.method is DemoMethod.FEDPROX else 0.0,
        ),
        fisher=run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_L2, floor=1.0),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=options.defaults.max_new_tokens),
    )
    set_method_settings(config, options.method_flags)
    return config
