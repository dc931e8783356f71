"""Steps whose loss is computed here, where the operator allows it: labels in, losses and gradients out, nothing kept.

P: rows of a joined pass   M: its output positions, padding included   N: those of one member   V: vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fednano.errors import WireError
from fednano.model.language import LanguageModel
from fednano.model.packing import Passage
from fednano.wire.tensors import encode_tensor
from services.server.passes import Encoded, ForwardWork, passage_or_refusal, run_group


@dataclass(frozen=True, kw_only=True, repr=False)
class LossWork:
    """One member: its inputs, the right token at each output position, and what that token's loss weighs."""

    forward: ForwardWork
    answer_ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LossAnswer:
    """The negative log-likelihood of each answer token, and the gradient of their weighted sum."""

    nll: list[float]
    grad_inputs_embeds: Encoded


def run_loss(
    model: LanguageModel, works: Sequence[LossWork], *, checkpointed: bool = False
) -> tuple[list[LossAnswer | WireError], int, int]:
    """One answer or refusal for each member, in their order; the rows of the pass, and the bytes of its graph."""
    passages = [passage_or_refusal(work.forward) for work in works]
    sound = [passage for passage in passages if isinstance(passage, Passage)]
    if not sound:
        return [passage for passage in passages if isinstance(passage, WireError)], 0, 0
    graph = run_group(model, sound, "logits", keeps_graph=True, checkpointed=checkpointed)
    grad_output_M, places, losses = torch.zeros_like(graph.outputs_M), iter(range(len(sound))), []
    for work, passage in zip(works, passages, strict=True):
        if isinstance(passage, Passage):
            outputs = graph.joined.output_ranges[next(places)]
            nll_N, grad_NV = _loss(graph.outputs_M[outputs], work, passage)
            grad_output_M[outputs] = grad_NV.to(grad_output_M)
            losses.append(nll_N)
    (grad_inputs_PD,) = torch.autograd.grad(graph.outputs_M, graph.inputs_embeds_PD, grad_output_M)
    places = iter(range(len(sound)))
    answers: list[LossAnswer | WireError] = []
    for work, passage in zip(works, passages, strict=True):
        if isinstance(passage, WireError):
            answers.append(passage)
            continue
        place = next(places)
        grad_SD = grad_inputs_PD[graph.joined.input_ranges[place]].to(passage.inputs_embeds_SD.dtype)
        gradient = encode_tensor(grad_SD, work.forward.inputs_embeds.encoding)
        answers.append(LossAnswer(nll=losses[place].tolist(), grad_inputs_embeds=gradient))
    return answers, len(graph.inputs_embeds_PD), graph.size_bytes


def _loss(logits_NV: Tensor, work: LossWork, passage: Passage) -> tuple[Tensor, Tensor]:
    """What the client would compute from these logits: in its own type, by the same functions."""
    dtype = passage.inputs_embeds_SD.dtype
    leaf_NV = logits_NV.detach().to(dtype).requires_grad_()
    answer_ids_N = torch.tensor(work.answer_ids, device=leaf_NV.device)
    with torch.enable_grad():
        nll_N = F.cross_entropy(leaf_NV, answer_ids_N, reduction="none")
    weights_N = torch.tensor(work.weights, dtype=dtype, device=leaf_NV.device)
    (grad_NV,) = torch.autograd.grad(nll_N, leaf_NV, weights_N)
    return nll_N.detach(), grad_NV
