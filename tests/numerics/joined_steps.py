"""Ragged steps of several clients, and what each gets from the model by itself.

S: tokens of a packed batch   N: output positions   D: hidden size   V: vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fednano.model.language import LanguageModel, load_language_model
from fednano.model.packing import OutputKind
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.tensors import decode_tensor, encode_tensor
from services.server.passes import Arrived, Encoded, ForwardWork

NANO = Path(__file__).resolve().parents[2] / "fednano" / "model" / "presets" / "nano" / "server"
LENGTHS: tuple[tuple[int, ...], ...] = ((5, 9, 2), (3,), (40, 61), (1,), (24,), (17, 8))


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One client's step: what it sends in either direction, and what it should get."""

    inputs_embeds_SD: Tensor
    sequence_lengths: tuple[int, ...]
    output_positions: tuple[int, ...]
    grad_output_N: Tensor
    output_N: Tensor
    grad_inputs_SD: Tensor

    @property
    def token_count(self) -> int:
        return len(self.inputs_embeds_SD)

    @property
    def forward_work(self) -> ForwardWork:
        return ForwardWork(
            inputs_embeds=arrived(self.inputs_embeds_SD),
            sequence_lengths=self.sequence_lengths,
            output_positions=self.output_positions,
        )


def nano() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(NANO)


def ragged_steps(
    model: LanguageModel, kind: OutputKind = "hidden_states", lengths: Sequence[tuple[int, ...]] = LENGTHS
) -> list[Step]:
    """Each with the answers of a pass of its own, by this model in this thread."""
    return [_step(model, kind, index, own) for index, own in enumerate(lengths)]


def _step(model: LanguageModel, kind: OutputKind, seed: int, lengths: tuple[int, ...]) -> Step:
    generator = torch.Generator().manual_seed(seed)
    inputs_embeds_SD = torch.randn(sum(lengths), model.hidden_size, generator=generator)
    positions = tuple(range(seed % 3, sum(lengths), 5)) or (0,)
    leaf_SD = inputs_embeds_SD.clone().requires_grad_()
    output_N = model.forward(leaf_SD, lengths, positions, kind)
    grad_output_N = torch.randn(output_N.shape, generator=generator)
    (grad_inputs_SD,) = torch.autograd.grad(output_N, leaf_SD, grad_output_N)
    return Step(
        inputs_embeds_SD=inputs_embeds_SD,
        sequence_lengths=lengths,
        output_positions=positions,
        grad_output_N=grad_output_N,
        output_N=output_N.detach(),
        grad_inputs_SD=grad_inputs_SD,
    )


def arrived(tensor: Tensor) -> Arrived:
    spec, payload = encode_tensor(tensor, tpb.ENCODING_RAW)
    return Arrived(spec=spec, payload=bytearray(payload), encoding=tpb.ENCODING_RAW)


def decoded(encoded: Encoded) -> Tensor:
    return decode_tensor(*encoded)
