"""One decode pass, as the model's thread runs it: each stream's new positions in, the outputs of its last ones out.

S: new positions of one stream
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fednano.errors import WireError
from fednano.model.decoding import DecodeStep, DecodingState
from fednano.model.language import LanguageModel
from fednano.model.packing import OutputKind
from fednano.wire.tensors import encode_tensor
from services.server.passes import Arrived, Encoded, finite_or_refusal


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodeWork:
    """What one stream appends to its sequences."""

    state: DecodingState
    inputs_embeds: Arrived
    sequence_lengths: tuple[int, ...]


def run_decode(model: LanguageModel, works: Sequence[DecodeWork], output_kind: OutputKind) -> list[Encoded | WireError]:
    """One answer or refusal for each stream; what is wrong with one stream's bytes is nothing to the others."""
    tensors = [finite_or_refusal(work.inputs_embeds, "inputs_embeds") for work in works]
    steps = [
        DecodeStep(state=work.state, inputs_embeds_SD=tensor, sequence_lengths=work.sequence_lengths)
        for work, tensor in zip(works, tensors, strict=True)
        if isinstance(tensor, Tensor)
    ]
    outputs = iter(model.decoder.decode(steps, output_kind) if steps else [])
    return [
        encode_tensor(next(outputs), work.inputs_embeds.encoding) if isinstance(tensor, Tensor) else tensor
        for work, tensor in zip(works, tensors, strict=True)
    ]
