"""The pass over the client's examples, through frozen pieces alone, that measures the Gram matrices of its adapters."""

from collections.abc import Callable, Sequence

from fednano.gram import GramMean, PackedGrams, pack_grams
from fednano.gram_layout import gram_shapes
from fednano.model.batch import EncodedExample, consecutive, pack
from fednano.model.edge import NanoEdge
from fednano.v1.run_pb2 import AdapterConfig

GRAM_BATCH = 64
MOST_TOKENS = 1 << 16


def gram_matrices(
    edge: NanoEdge, examples: Sequence[EncodedExample], config: AdapterConfig, after_batch: Callable[[], None]
) -> PackedGrams:
    """Over all tokens that the language model gets in training: up to the one that predicts an answer's last token."""
    means = GramMean()
    for group in consecutive(examples, most_examples=GRAM_BATCH, most_tokens=MOST_TOKENS):
        batch = pack(group, edge.parts.processor.image_token_id)
        for modality in config.modalities:
            means.add(modality, edge.frozen_embeds(batch, modality))
        after_batch()
    return pack_grams(means.mean(len(examples)), gram_shapes(list(config.modalities), config.hidden_size, config.rank))
