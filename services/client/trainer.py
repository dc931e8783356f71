"""Local training: plain PyTorch, whatever stands behind the language half."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fednano.model.batch import EncodedExample, pack
from fednano.model.edge import LanguageHalf, NanoEdge
from fednano.v1.run_pb2 import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Training:
    """``mean_loss`` is over all examples seen, each as it was when its batch came."""

    mean_loss: float
    step_count: int


def train(
    edge: NanoEdge,
    language: LanguageHalf,
    examples: Sequence[EncodedExample],
    config: TrainConfig,
    *,
    order: torch.Generator,
    after_step: Callable[[], None],
) -> Training:
    """Trains the adapters in place; AdamW starts afresh. ``after_step`` may raise to end it."""
    optimizer = torch.optim.AdamW(edge.adapters.parameters(), lr=config.learning_rate, weight_decay=0.0)
    loss_sum, example_count, step_count = 0.0, 0, 0
    for indices in batches(len(examples), config, order):
        batch = pack([examples[index] for index in indices], edge.parts.processor.image_token_id)
        optimizer.zero_grad()
        loss = edge.answer_nll(language, edge(batch), batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum, example_count, step_count = (
            loss_sum + loss.item() * len(indices),
            example_count + len(indices),
            step_count + 1,
        )
        after_step()
    return Training(mean_loss=loss_sum / example_count, step_count=step_count)


def example_order(seed: int, round_number: int, client_id: str) -> torch.Generator:
    """The same in every process that is given the same three, and unrelated where one differs."""
    digest = hashlib.sha256(f"{seed}/{round_number}/{client_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def batches(example_count: int, config: TrainConfig, order: torch.Generator) -> Iterator[list[int]]:
    """Indices, every example once an epoch, the last batch of an epoch as short as it is."""
    step = 0
    for _ in range(max(config.local_epochs, 1)):
        shuffled = torch.randperm(example_count, generator=order).tolist()
        for start in range(0, example_count, config.batch_size):
            if config.local_steps and step == config.local_steps:
                return
            yield shuffled[start : start + config.batch_size]
            step += 1
