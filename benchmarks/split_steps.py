"""Ragged steps for the LLM server, and the same in this process.

S: tokens of a packed batch   P: rows of a joined pass   D: hidden size   N, M: output positions of one or all
"""

import random
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from fednano.model.language import LanguageModel
from fednano.model.packing import Passage, join
from fednano.split.session import Pass, StepSession

OUTPUTS = 8


def ragged_passes(clients: int, width: int, sequences: int = 2) -> list[Pass]:
    """One for each client, the same at each call."""
    lengths = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    passes = []
    for _ in range(clients):
        own = tuple(lengths.randint(40, 80) for _ in range(sequences))
        ends = list(accumulate(own))
        passes.append(
            Pass(
                step_id=1,
                inputs_embeds_SD=torch.randn(sum(own), width, generator=generator),
                sequence_lengths=own,
                output_positions=tuple(end - OUTPUTS + index for end in ends for index in range(OUTPUTS)),
                output_kind="hidden_states",
                requires_grad=True,
            )
        )
    return passes


async def train(session: StepSession, step: Pass, first_id: int, count: int) -> Tensor:
    """The gradient of the last of ``count`` steps."""
    grad_output_ND = torch.ones(len(step.output_positions), step.inputs_embeds_SD.shape[1])
    grad_SD = torch.empty(0)
    for step_id in range(first_id, first_id + count):
        own = Pass(**{**vars(step), "step_id": step_id})
        await session.forward(own)
        grad_SD = await session.backward(own, grad_output_ND)
    return grad_SD


def both_passes(model: LanguageModel, group: Sequence[Pass]) -> None:
    passages = [
        Passage(
            inputs_embeds_SD=step.inputs_embeds_SD,
            sequence_lengths=step.sequence_lengths,
            output_positions=step.output_positions,
        )
        for step in group
    ]
    joined = join(passages, "hidden_states", model.row_tile)
    leaf_PD = joined.inputs_embeds_PD.detach().requires_grad_()
    outputs_MD = model.forward_rows(joined, leaf_PD, "hidden_states")
    torch.autograd.grad(outputs_MD, leaf_PD, torch.ones_like(outputs_MD))
