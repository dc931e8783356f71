"""The pass over the client's examples, before or after training, that estimates Fisher information.

S: tokens of a packed batch   D: hidden size   M: tokens of a modality   H: two halves of the examples
B: batch   N: answer positions   V: vocabulary
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fednano.fisher import AdapterPass, FisherMean, squared_gradient_halves
from fednano.model.adapter import MODALITIES
from fednano.model.batch import EncodedExample, PackedBatch, consecutive, pack
from fednano.model.edge import LanguageHalf, NanoEdge, nll_of, positions_of
from services.client.fitting import FittingSize, pieces

FISHER_BATCH = 64


def fisher_information(
    edge: NanoEdge,
    language: LanguageHalf,
    examples: Sequence[EncodedExample],
    *,
    max_pass_tokens: int,
    after_batch: Callable[[], None],
) -> dict[str, Tensor]:
    """The mean over examples of each one's squared gradient, by the names and in the shapes of the adapter file."""
    return estimate_fisher(edge, language, examples, max_pass_tokens=max_pass_tokens, after_batch=after_batch).mean()


def estimate_fisher(
    edge: NanoEdge,
    language: LanguageHalf,
    examples: Sequence[EncodedExample],
    *,
    max_pass_tokens: int,
    after_batch: Callable[[], None],
    labels: torch.Generator | None = None,
    fitting: FittingSize | None = None,
) -> FisherMean:
    """As ``fisher_information``; with ``labels``, of labels that it draws from the model's own distribution."""
    mean, fitting = FisherMean(), fitting or FittingSize("Fisher information")
    for group in consecutive(examples, most_examples=FISHER_BATCH, most_tokens=max_pass_tokens):
        drawn = labels.get_state() if labels is not None else None

        def halves(
            size: int, group: Sequence[EncodedExample] = group, drawn: Tensor | None = drawn
        ) -> list[tuple[dict[str, Tensor], int]]:
            if labels is not None and drawn is not None:
                labels.set_state(drawn)
            return _halves(edge, language, group, size, labels=labels, first_index=mean.example_count)

        for half, example_count in fitting.run(len(group), halves):
            mean.add(half, example_count)
        after_batch()
    return mean


def _halves(
    edge: NanoEdge,
    language: LanguageHalf,
    group: Sequence[EncodedExample],
    size: int,
    *,
    labels: torch.Generator | None,
    first_index: int,
) -> list[tuple[dict[str, Tensor], int]]:
    """``batch_halves`` of at most ``size`` examples at a time, and of how many each is."""
    found = []
    for piece in pieces(group, size):
        batch = pack(piece, edge.parts.processor.image_token_id).to(edge.device)
        gradients_SD = input_gradients(edge, language, batch, labels)
        found.append((batch_halves(edge, batch, gradients_SD, first_index), len(piece)))
        first_index += len(piece)
    return found


def input_gradients(
    edge: NanoEdge, language: LanguageHalf, batch: PackedBatch, labels: torch.Generator | None
) -> Tensor:
    """Of the sum, not the mean, of the examples' losses: so that no example's gradient depends on the batch."""
    with torch.no_grad():
        inputs_embeds_SD = edge(batch)
    inputs_embeds_SD.requires_grad_()
    if labels is None:
        nll_B = edge.answer_nll(language, inputs_embeds_SD, batch, weight=1.0)
    else:
        logits_NV = edge.answer_logits(language, inputs_embeds_SD, batch)
        # On the CPU: the generator is there, and draws the same for every device.
        drawn_N = torch.multinomial(logits_NV.detach().softmax(-1).cpu(), 1, generator=labels).squeeze(1)
        nll_B = nll_of(logits_NV, drawn_N, batch)
    gradients_SD: Tensor = torch.autograd.grad(nll_B.sum(), inputs_embeds_SD)[0]
    return gradients_SD


@torch.no_grad()
def batch_halves(edge: NanoEdge, batch: PackedBatch, gradients_SD: Tensor, first_index: int) -> dict[str, Tensor]:
    """Sums of the examples' squared gradients [H, ...] as FisherMean takes them, by the names of the adapter file.

    ``gradients_SD`` is of the sum of the examples' losses, at what the adapters gave.
    """
    halves: dict[str, Tensor] = {}
    for modality in MODALITIES:
        adapter = edge.adapters.of(modality)
        if adapter is None:
            continue
        positions_M = positions_of(batch, modality)
        seen = AdapterPass(
            inputs_MD=edge.frozen_embeds(batch, modality),
            output_gradients_MD=gradients_SD[positions_M],
            example_index_M=batch.example_index_S[positions_M],
            example_count=batch.example_count,
        )
        weights = adapter.down.weight, adapter.up.weight
        down, up = squared_gradient_halves(seen, *weights, adapter.scale, first_index=first_index)
        halves |= {f"{modality}.down.weight": down, f"{modality}.up.weight": up}
    return halves
