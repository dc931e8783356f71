"""What a demo is asked to do, and the run's configuration that follows from it."""

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from google.protobuf import duration_pb2

from fednano.v1 import run_pb2, split_service_pb2

RUN_ID = "demo"
RUN_NAME = f"runs/{RUN_ID}"
ROUND_TIMEOUT_S = 120
JOIN_TIMEOUT_S = 120
VAL_EXAMPLES = 300
TEST_EXAMPLES = 600


class DemoMethod(StrEnum):
    """The federated algorithms that the demo offers."""

    FEDNANO = "fednano"
    FEDAVG = "fedavg"


METHODS = {DemoMethod.FEDNANO: run_pb2.METHOD_FEDNANO, DemoMethod.FEDAVG: run_pb2.METHOD_FEDAVG}


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
    val_examples: int = VAL_EXAMPLES
    test_examples: int = TEST_EXAMPLES
    fresh: bool = False

    @property
    def fingerprint(self) -> str:
        """A digest of what decides the result: an unfinished demo may be continued only where it is the same."""
        deciding = {name: value for name, value in asdict(self).items() if name not in ("out", "fresh")}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def request_id(options: DemoOptions) -> str:
    """The UUID of the demo's CreateRun: the same options make the same request, so repeating it creates nothing."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"fednano/demo/{options.fingerprint}"))


def run_config(options: DemoOptions, model: split_service_pb2.Model) -> run_pb2.RunConfig:
    """The run that the demo creates: all clients train in every round, with the settings that validation chose."""
    return run_pb2.RunConfig(
        model_digest=model.digest,
        round_count=options.rounds,
        clients_per_round=options.clients,
        min_updates=options.clients,
        round_timeout=duration_pb2.Duration(seconds=ROUND_TIMEOUT_S),
        join_timeout=duration_pb2.Duration(seconds=JOIN_TIMEOUT_S),
        method=METHODS[options.method],
        adapter=run_pb2.AdapterConfig(rank=16, alpha=32, modalities=["image", "text"], hidden_size=model.hidden_size),
        train=run_pb2.TrainConfig(local_epochs=1, batch_size=8, learning_rate=8e-3, seed=options.seed),
        fisher=run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_L2, floor=1.0),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=4),
    )
