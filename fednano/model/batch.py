"""Examples as ids, and batches of them packed one after the other without padding.

B: batch   S: tokens of a packed batch   P: image tokens   D: hidden size   N: answer positions
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EncodedExample:
    """An example as the edge computes with it.

    ``prompt_ids`` holds P placeholders, which may belong to several images or to none; ``answer_ids`` ends with the
    token that ends an answer; ``image_embeds_PD`` comes from frozen pieces, so that it is computed once.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    image_embeds_PD: Tensor


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """B sequences, one after the other, and where their outputs are wanted.

    ``output_positions`` are positions in S that predict a token: for training, those before each answer token. The
    last answer token is never an input, for nothing follows it. ``answer_ids_N`` and ``example_index_N`` say which
    token is right there and which of the B examples it belongs to; both are empty for prompts alone. A new batch is on
    the CPU.
    """

    token_ids_S: Tensor
    is_image_S: Tensor
    image_embeds_MD: Tensor
    sequence_lengths: tuple[int, ...]
    output_positions: tuple[int, ...]
    answer_ids_N: Tensor
    example_index_N: Tensor

    @property
    def example_count(self) -> int:
        return len(self.sequence_lengths)

    @property
    def example_index_S(self) -> Tensor:
        """Which of the B examples each position belongs to."""
        lengths_B = torch.tensor(self.sequence_lengths)
        return torch.arange(self.example_count).repeat_interleave(lengths_B).to(self.token_ids_S.device)

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors there; itself where they are already."""
        if self.token_ids_S.device == device:
            return self
        return replace(
            self,
            token_ids_S=self.token_ids_S.to(device),
            is_image_S=self.is_image_S.to(device),
            image_embeds_MD=self.image_embeds_MD.to(device),
            answer_ids_N=self.answer_ids_N.to(device),
            example_index_N=self.example_index_N.to(device),
        )


def pack(examples: Sequence[EncodedExample], image_token_id: int) -> PackedBatch:
    """A batch to train on: prompts with their answers."""
    sequences = [[*example.prompt_ids, *example.answer_ids[:-1]] for example in examples]
    starts = _starts(sequences)
    positions, owners = [], []
    for index, (example, start) in enumerate(zip(examples, starts, strict=True)):
        first = start + len(example.prompt_ids) - 1
        positions += list(range(first, first + len(example.answer_ids)))
        owners += [index] * len(example.answer_ids)
    answers = [answer_id for example in examples for answer_id in example.answer_ids]
    return _batch(examples, sequences, image_token_id, positions=positions, answers=answers, owners=owners)


def pack_prompts(examples: Sequence[EncodedExample], image_token_id: int) -> PackedBatch:
    """A batch to decode from: prompts alone, with one output each, at their last position."""
    sequences = [list(example.prompt_ids) for example in examples]
    positions = [end - 1 for end in accumulate(map(len, sequences))]
    return _batch(examples, sequences, image_token_id, positions=positions, answers=[], owners=[])


def consecutive(
    examples: Sequence[EncodedExample], *, most_examples: int, most_tokens: int, extra_tokens: int = 0
) -> Iterator[list[EncodedExample]]:
    """The examples in order, in groups bounded both ways; each counts prompt, answer and ``extra_tokens``.

    An example that is too long by itself makes a group of its own, which the language model then refuses by name.
    """
    group: list[EncodedExample] = []
    token_count = 0
    for example in examples:
        own = len(example.prompt_ids) + len(example.answer_ids) + extra_tokens
        if group and (len(group) == most_examples or token_count + own > most_tokens):
            yield group
            group, token_count = [], 0
        group.append(example)
        token_count += own
    if group:
        yield group


def _starts(sequences: Sequence[Sequence[int]]) -> list[int]:
    return [0, *accumulate(map(len, sequences))][:-1]


def _batch(
    examples: Sequence[EncodedExample],
    sequences: Sequence[Sequence[int]],
    image_token_id: int,
    *,
    positions: list[int],
    answers: list[int],
    owners: list[int],
) -> PackedBatch:
    token_ids_S = torch.tensor([token_id for sequence in sequences for token_id in sequence], dtype=torch.long)
    return PackedBatch(
        token_ids_S=token_ids_S,
        is_image_S=token_ids_S == image_token_id,
        image_embeds_MD=torch.cat([example.image_embeds_PD for example in examples]),
        sequence_lengths=tuple(map(len, sequences)),
        output_positions=tuple(positions),
        answer_ids_N=torch.tensor(answers, dtype=torch.long),
        example_index_N=torch.tensor(owners, dtype=torch.long),
    )
