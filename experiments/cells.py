"""A cell is one method, setting and seed: one federated run. Its configuration follows from it."""

import hashlib
import json
from dataclasses import asdict, dataclass

from google.protobuf import duration_pb2

from fednano.v1 import run_pb2, split_service_pb2

Fisher = run_pb2.FisherConfig
# The paper's Eq. 1 with nothing added, what validation chose, and F = 1 for all.
FISHER = {
    "literal": Fisher(normalization=Fisher.NORMALIZATION_NONE, floor=0.0, max_share=1.0),
    "l2-floor-1": Fisher(normalization=Fisher.NORMALIZATION_L2, floor=1.0),
    "ones": Fisher(normalization=Fisher.NORMALIZATION_NONE, kind=Fisher.KIND_ONES),
}
CENTRALIZED = "centralized"
POOLED_CLIENT = "pooled"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything that decides a run's result. ``alpha`` is the Dirichlet split's, ``split`` the one measured on.

    ``examples`` is empty for the generated icons, else the folder of a user's own. ``noisy_clients``: that many of the
    first clients have their training answers shuffled. ``local_steps``, where set, bounds a round's steps.
    """

    preset: str = "nano"
    examples: str = ""
    train_examples: int = 1000
    val_examples: int = 300
    test_examples: int = 600
    clients: int = 5
    alpha: float = 1.0
    noisy_clients: int = 0
    seed: int = 0
    split: str = "test"
    method: str = "fednano"
    fisher: str = "l2-floor-1"
    rounds: int = 10
    modalities: tuple[str, ...] = ("image", "text")
    rank: int = 16
    batch_size: int = 8
    local_epochs: int = 1
    local_steps: int = 0
    learning_rate: float = 8e-3
    proximal_mu: float = 0.01
    gram_step: float = 0.5

    @property
    def name(self) -> str:
        """The file name of its outcome, and the id of its run: the same while new settings have these as defaults."""
        defaults = asdict(Cell())
        special = {key: value for key, value in asdict(self).items() if value != defaults[key]}
        return f"{self.method.replace('_', '-')}-seed-{self.seed}-{digest(special)[:12]}"

    @property
    def examples_name(self) -> str:
        """The folder of its clients' examples: the same for all cells that are to be compared."""
        deciding = (self.examples, self.train_examples, self.val_examples, self.test_examples)
        split = (self.clients, self.alpha, self.noisy_clients, self.seed)
        return f"seed-{self.seed}-{digest([*deciding, *split])[:12]}"

    @property
    def process_names(self) -> tuple[str, ...]:
        """Its client processes: centralized has one, which holds everybody's examples."""
        if self.method == CENTRALIZED:
            return (POOLED_CLIENT,)
        return tuple(f"client-{number}" for number in range(1, self.clients + 1))


def digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def run_config(
    cell: Cell, model: split_service_pb2.Model, *, timeout_s: int, max_new_tokens: int = 4
) -> run_pb2.RunConfig:
    """All clients train in every round; the initial and the last adapter are evaluated, none between."""
    count = len(cell.process_names)
    return run_pb2.RunConfig(
        model_digest=model.digest,
        round_count=cell.rounds,
        clients_per_round=count,
        min_updates=count,
        round_timeout=duration_pb2.Duration(seconds=timeout_s),
        join_timeout=duration_pb2.Duration(seconds=timeout_s),
        method=run_pb2.Method.Value(f"METHOD_{cell.method.upper()}"),
        adapter=run_pb2.AdapterConfig(
            # The scale alpha / rank is 2 at any rank.
            rank=cell.rank,
            alpha=2 * cell.rank,
            modalities=cell.modalities,
            hidden_size=model.hidden_size,
        ),
        train=run_pb2.TrainConfig(
            local_epochs=cell.local_epochs,
            local_steps=cell.local_steps,
            batch_size=cell.batch_size,
            learning_rate=cell.learning_rate,
            seed=cell.seed,
            proximal_mu=cell.proximal_mu,
        ),
        fisher=FISHER[cell.fisher],
        gram=run_pb2.GramConfig(step=cell.gram_step),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=max_new_tokens),
    )
