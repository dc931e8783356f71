"""The pass over the client's examples, after training, that estimates Fisher information.

S: tokens of a packed batch   D: hidden size   M: tokens of a modality
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fednano.fisher import AdapterPass, FisherMean, squared_gradient_sums
from fednano.model.adapter import MODALITIES
from fednano.model.batch import EncodedExample, PackedBatch, consecutive, pack
from fednano.model.edge import LanguageHalf, NanoEdge, positions_of

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
    mean = FisherMean()
    for group in consecutive(examples, most_examples=FISHER_BATCH, most_tokens=max_pass_tokens):
        batch = pack(group, edge.parts.processor.image_token_id)
        mean.add(_batch_sums(edge, batch, _input_gradients(edge, language, batch)), batch.example_count)
        after_batch()
    return mean.mean()


def _input_gradients(edge: NanoEdge, language: LanguageHalf, batch: PackedBatch) -> Tensor:
    """Of the sum, not the mean, of the examples' losses: so that no example's gradient depends on the batch."""
    with torch.no_grad():
        inputs_embeds_SD = edge(batch)
    inputs_embeds_SD.requires_grad_()
    nll_B = edge.answer_nll(language, inputs_embeds_SD, batch)
    gradients_SD: Tensor = torch.autograd.grad(nll_B.sum(), inputs_embeds_SD)[0]
    return gradients_SD


@torch.no_grad()
def _batch_sums(edge: NanoEdge, batch: PackedBatch, gradients_SD: Tensor) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
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
        down, up = squared_gradient_sums(seen, adapter.down.weight, adapter.up.weight, adapter.scale)
        sums |= {f"{modality}.down.weight": down, f"{modality}.up.weight": up}
    return sums
