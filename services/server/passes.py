"""The work of one pass, as the model's thread runs it: bytes in, bytes out.

Dimensions: S tokens of a packed batch, N outputs, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednano.errors import FieldInvalid
from fednano.model.language import DecodingState, LanguageModel, OutputKind
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.tensors import decode_tensor, encode_tensor

Encoded = tuple[tpb.TensorSpec, memoryview]


@dataclass(frozen=True, kw_only=True)
class PendingStep:
    """A forward pass whose graph waits for its backward pass."""

    inputs_embeds_SD: Tensor
    outputs_N: Tensor


def run_forward(
    model: LanguageModel,
    inputs_embeds_SD: Tensor,
    sequence_lengths: Sequence[int],
    output_positions: Sequence[int],
    output_kind: OutputKind,
    requires_grad: bool,
) -> PendingStep:
    """The outputs, with a graph down to the inputs only where a backward pass will follow."""
    inputs_embeds_SD.requires_grad_(requires_grad)
    with torch.set_grad_enabled(requires_grad):
        outputs_N = model.forward(inputs_embeds_SD, sequence_lengths, output_positions, output_kind)
    return PendingStep(inputs_embeds_SD=inputs_embeds_SD, outputs_N=outputs_N)


def run_backward(
    step: PendingStep, spec: tpb.TensorSpec, payload: bytearray, encoding: tpb.Encoding.ValueType
) -> Encoded:
    """The gradient of the inputs [S, D], encoded; the graph is gone afterwards."""
    grad_output_N = finite_tensor(spec, payload, "grad_output").to(step.outputs_N)
    (grad_inputs_SD,) = torch.autograd.grad(step.outputs_N, step.inputs_embeds_SD, grad_output_N)
    return encode_tensor(grad_inputs_SD, encoding)


def run_decode(
    model: LanguageModel,
    state: DecodingState,
    inputs_embeds_SD: Tensor,
    sequence_lengths: Sequence[int],
    output_kind: OutputKind,
    encoding: tpb.Encoding.ValueType,
) -> Encoded:
    """The last output of every live sequence, encoded."""
    return encode_tensor(model.decode(state, inputs_embeds_SD, sequence_lengths, output_kind), encoding)


def finite_tensor(spec: tpb.TensorSpec, payload: bytearray, field: str) -> Tensor:
    """The tensor; FieldInvalid names ``field`` where a value is not finite, which would spoil a whole batch unseen."""
    tensor = decode_tensor(spec, payload)
    if not bool(torch.isfinite(tensor).all()):
        raise FieldInvalid(f"{field} has values that are not finite: did training diverge?", field=field)
    return tensor
