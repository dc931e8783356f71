"""What a demo does with each preset when nothing else is said, and how a local server runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class DemoPreset:
    """Counts are over all clients. docs/models.md says how the learning rates were chosen.

    ``server_flags`` are for an LLM server on this machine.
    """

    clients: int
    train_examples: int
    val_examples: int
    test_examples: int
    learning_rate: float
    batch_size: int
    max_new_tokens: int
    round_timeout_s: int
    server_flags: tuple[str, ...] = ()


PRESETS: Mapping[str, DemoPreset] = MappingProxyType(
    {
        "nano": DemoPreset(
            clients=5,
            train_examples=1000,
            val_examples=300,
            test_examples=600,
            learning_rate=8e-3,
            batch_size=8,
            max_new_tokens=4,
            round_timeout_s=120,
        ),
        # A hundred times the size of nano: fewer clients, for each holds the token embedding, and fewer questions. The
        # answer "12:30" has six tokens. In bfloat16 a step takes a fraction of its time where a CPU multiplies it. With
        # two clients there is little to share passes for, and to find out whether that changes bits takes a minute.
        "smol": DemoPreset(
            clients=2,
            train_examples=64,
            val_examples=64,
            test_examples=128,
            learning_rate=2e-3,
            batch_size=4,
            max_new_tokens=8,
            round_timeout_s=1800,
            server_flags=("--compute-type", "bfloat16", "--batching", "off"),
        ),
    }
)
# Of a model that is named by its folder.
DEFAULT = "nano"


def server_flags(model: str) -> list[str]:
    """How a server on this machine is started for a preset, or for a model's folder."""
    return list(PRESETS[model].server_flags) if model in PRESETS else []
