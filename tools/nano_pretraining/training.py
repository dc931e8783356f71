"""What both stages share: the learning-rate schedule, seeds of steps, and checkpoints to go on from."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nano_pretraining.settings import StageSettings

Log = Callable[[str], None]
CHECKPOINT_EVERY_STEP_COUNT = 250


def step_seed(seed: int, stage: int, step: int) -> int:
    """One seed for each step, so that a resumed run draws what an undisturbed one would have drawn."""
    return (seed * 10 + stage) * 1_000_000 + step


def evaluation_seed(seed: int) -> int:
    """Far from every training step's seed."""
    return -1 - seed


def learning_rate(settings: StageSettings, step: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth; by step, never by time."""
    warmup = min(1.0, (step + 1) / settings.warmup_step_count)
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / settings.schedule_step_count)
    return settings.learning_rate * warmup * max(0.02, cosine)


def run_steps(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: StageSettings,
    checkpoint: "Checkpoint",
    *,
    loss_of_step: Callable[[int], Tensor],
    after_step: Callable[[int, float], None],
    saved_every: int = CHECKPOINT_EVERY_STEP_COUNT,
) -> None:
    """Trains ``module`` to the last step, from its checkpoint where there is one. Steps count from 0."""
    for step in range(checkpoint.load(module, optimizer), settings.step_count):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        after_step(step, loss.item())
        if (step + 1) % saved_every == 0 or step + 1 == settings.step_count:
            checkpoint.save(module, optimizer, step + 1)


class Checkpoint:
    """Weights, optimiser state and the number of steps done, in one safetensors file replaced whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, done_step_count: int) -> None:
        tensors = {f"module.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor.clone() for name, tensor in state.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        save_file(tensors, new, metadata={"progress": json.dumps({"done_step_count": done_step_count})})
        new.replace(self._path)

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restores both and returns the number of steps done: 0 where there is no checkpoint."""
        if not self._path.exists():
            return 0
        tensors = load_file(self._path)
        module.load_state_dict({name[7:]: tensor for name, tensor in tensors.items() if name.startswith("module.")})
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                states.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        return self._done_step_count()

    def _done_step_count(self) -> int:
        header_size = int.from_bytes(self._path.read_bytes()[:8], "little")
        header = json.loads(self._path.read_bytes()[8 : 8 + header_size])
        count: int = json.loads(header["__metadata__"]["progress"])["done_step_count"]
        return count
