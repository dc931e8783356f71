"""The work of one pass, as the model's thread runs it: bytes in, bytes out, for all the members of the pass.

What is wrong with one member's bytes is that member's answer; the others get theirs.

P: rows of a joined pass   M: its output positions, padding included   D: hidden size   V: vocabulary
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fednano.errors import FieldInvalid, WireError
from fednano.model.language import LanguageModel
from fednano.model.packing import OutputKind, Passage, join
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.tensors import decode_tensor, encode_tensor
from services.server.graph_memory import GroupGraph, KeptStep
from services.server.saved_bytes import SavedBytes

Encoded = tuple[tpb.TensorSpec, memoryview]


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A tensor as it came, and the encoding that its sender wants the answer in."""

    spec: tpb.TensorSpec
    payload: bytearray
    encoding: "tpb.Encoding.ValueType"


@dataclass(frozen=True, kw_only=True)
class ForwardWork:
    """One member of a joined forward pass."""

    inputs_embeds: Arrived
    sequence_lengths: tuple[int, ...]
    output_positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class BackwardWork:
    """One member of a backward pass."""

    step: KeptStep
    gradient: Arrived


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardAnswer:
    step: KeptStep
    output: Encoded


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardOutcome:
    """One answer or refusal for each member, in their order; no graph where none was to be kept."""

    answers: list[ForwardAnswer | WireError]
    graph: GroupGraph | None


def run_forward(
    model: LanguageModel,
    works: Sequence[ForwardWork],
    output_kind: OutputKind,
    *,
    keeps_graph: bool,
    checkpointed: bool = False,
) -> ForwardOutcome:
    """The outputs of all members from one pass."""
    passages = [passage_or_refusal(work) for work in works]
    sound = [passage for passage in passages if isinstance(passage, Passage)]
    if not sound:
        return ForwardOutcome(answers=[p for p in passages if isinstance(p, WireError)], graph=None)
    graph = run_group(model, sound, output_kind, keeps_graph=keeps_graph, checkpointed=checkpointed)
    places = iter(range(len(sound)))
    answers: list[ForwardAnswer | WireError] = []
    for work, passage in zip(works, passages, strict=True):
        if isinstance(passage, WireError):
            answers.append(passage)
            continue
        place = next(places)
        output_N = graph.outputs_M[graph.joined.output_ranges[place]]
        rows, width = output_N.shape
        step = KeptStep(passage=passage, output_kind=output_kind, output_shape=(rows, width))
        if keeps_graph:
            step.graph = graph
            graph.members[step] = place
        answers.append(ForwardAnswer(step=step, output=encode_tensor(output_N, work.inputs_embeds.encoding)))
    return ForwardOutcome(answers=answers, graph=graph if keeps_graph else None)


def run_group(
    model: LanguageModel,
    passages: Sequence[Passage],
    output_kind: OutputKind,
    *,
    keeps_graph: bool,
    checkpointed: bool = False,
) -> GroupGraph:
    """One joined pass, whose graph reaches down to its joined inputs; without members so far.

    ``checkpointed`` keeps of each layer its inputs alone, and changes no bit.
    """
    start_s = time.perf_counter()
    joined = join(passages, output_kind, model.row_tile)
    inputs_embeds_PD = joined.inputs_embeds_PD.detach().to(model.device, model.dtype).requires_grad_(keeps_graph)
    saved = SavedBytes(model)
    layers = model.layers.checkpointed() if checkpointed else nullcontext()
    with torch.set_grad_enabled(keeps_graph), layers, saved.counted():
        outputs_M = model.forward_rows(joined, inputs_embeds_PD, output_kind)
    for tensor in (inputs_embeds_PD, outputs_M):
        saved.add(tensor)
    return GroupGraph(
        joined=joined,
        inputs_embeds_PD=inputs_embeds_PD,
        outputs_M=outputs_M,
        size_bytes=saved.size_bytes,
        checkpointed=checkpointed,
        forward_s=time.perf_counter() - start_s,
        members={},
    )


def run_backward(graph: GroupGraph, places: Sequence[int], works: Sequence[BackwardWork]) -> list[Encoded | WireError]:
    """The gradients of the inputs of the members at ``places``; the graph is of no more use.

    Members that are not there get a gradient of zero, which changes no bit of the others'.
    """
    grad_output_M = torch.zeros_like(graph.outputs_M)
    refusals: list[WireError | None] = []
    for place, work in zip(places, works, strict=True):
        tensor = finite_or_refusal(work.gradient, "grad_output")
        refusals.append(tensor if isinstance(tensor, WireError) else None)
        if isinstance(tensor, Tensor):
            grad_output_M[graph.joined.output_ranges[place]] = tensor.to(grad_output_M)
    (grad_inputs_PD,) = torch.autograd.grad(graph.outputs_M, graph.inputs_embeds_PD, grad_output_M)
    return [
        refusal or _encoded_gradient(work, grad_inputs_PD[graph.joined.input_ranges[place]])
        for refusal, place, work in zip(refusals, places, works, strict=True)
    ]


def run_again(
    model: LanguageModel, works: Sequence[BackwardWork], *, checkpointed: bool = False
) -> tuple[list[Encoded | WireError], int]:
    """The gradients of steps whose graph is gone: both passes, from the kept inputs. And the bytes of that graph."""
    steps = [work.step for work in works]
    passages = [step.passage for step in steps]
    graph = run_group(model, passages, steps[0].output_kind, keeps_graph=True, checkpointed=checkpointed)
    return run_backward(graph, range(len(works)), works), graph.size_bytes


def finite_tensor(spec: tpb.TensorSpec, payload: bytearray, field: str) -> Tensor:
    """The tensor; FieldInvalid names ``field`` where a value is not finite, which would spoil a whole batch unseen."""
    tensor = decode_tensor(spec, payload)
    if not bool(torch.isfinite(tensor).all()):
        raise FieldInvalid(f"{field} has values that are not finite: did training diverge?", field=field)
    return tensor


def finite_or_refusal(arrived: Arrived, field: str) -> Tensor | WireError:
    try:
        return finite_tensor(arrived.spec, arrived.payload, field)
    except WireError as refusal:
        return refusal


def passage_or_refusal(work: ForwardWork) -> Passage | WireError:
    """What a member brings to a pass, or why it cannot take part."""
    inputs_embeds_SD = finite_or_refusal(work.inputs_embeds, "inputs_embeds")
    if isinstance(inputs_embeds_SD, WireError):
        return inputs_embeds_SD
    return Passage(
        inputs_embeds_SD=inputs_embeds_SD,
        sequence_lengths=work.sequence_lengths,
        output_positions=work.output_positions,
    )


def _encoded_gradient(work: BackwardWork, grad_inputs_SD: Tensor) -> Encoded:
    """In the type of the inputs, whatever the model computes in."""
    return encode_tensor(grad_inputs_SD.to(work.step.passage.inputs_embeds_SD.dtype), work.gradient.encoding)
