"""The client's half of the model: frozen pieces around the adapters, and the loss.

C: colour channels   H, W: height and width in pixels   B: batch   S: tokens of a packed batch   M: tokens of a modality
P: image tokens   D: hidden size   V: vocabulary   N: answer positions
"""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fednano.model.adapter import IMAGE, MODALITIES, TEXT, NanoAdapters
from fednano.model.batch import PackedBatch
from fednano.model.parts import EdgeParts

OutputKind = Literal["hidden_states", "logits"]


class LanguageHalf(Protocol):
    """The frozen language model, in this process or behind the network."""

    def forward(
        self,
        inputs_embeds_SD: Tensor,
        sequence_lengths: Sequence[int],
        output_positions: Sequence[int],
        output_kind: OutputKind,
    ) -> Tensor:
        """[N, D] hidden states behind the final norm, or [N, V] logits; differentiable in ``inputs_embeds_SD``."""
        ...


@runtime_checkable
class LossHalf(Protocol):
    """A language model that is given the labels too, and computes the loss where it is."""

    def token_nll(
        self,
        inputs_embeds_SD: Tensor,
        sequence_lengths: Sequence[int],
        output_positions: Sequence[int],
        answer_ids_N: Tensor,
        weights_N: Tensor,
    ) -> Tensor:
        """[N]: each answer token's negative log-likelihood. ``weights_N`` foretells what its gradient will be."""
        ...


class NanoEdge(nn.Module):
    """Packed tokens to the language model's inputs, and its outputs to logits. The adapters go where the parts are."""

    def __init__(self, parts: EdgeParts, adapters: NanoAdapters) -> None:
        super().__init__()
        self.parts = parts
        self.vision_encoder, self.connector = parts.vision_encoder, parts.connector
        self.token_embedding, self.head = parts.token_embedding, parts.head
        self.adapters = adapters.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where all of it computes; batches, and what the language model returns, are brought there."""
        return self.token_embedding.weight.device

    @property
    def output_kind(self) -> OutputKind:
        """What to ask the language model for: logits only where the head is not held here."""
        return "logits" if self.head is None else "hidden_states"

    def forward(self, batch: PackedBatch) -> Tensor:
        """inputs_embeds_SD: each modality's embeddings through its adapter, put where its tokens stand."""
        batch = batch.to(self.device)
        embeds_SD = torch.zeros(len(batch.token_ids_S), self.token_embedding.embedding_dim, device=self.device)
        for modality in MODALITIES:
            adapted_MD = self.adapters(self.frozen_embeds(batch, modality), modality)
            embeds_SD = embeds_SD.index_copy(0, positions_of(batch, modality), adapted_MD)
        return embeds_SD

    @torch.no_grad()
    def frozen_embeds(self, batch: PackedBatch, modality: str) -> Tensor:
        """What the modality's adapter gets: [M, D], in the order of ``positions_of``."""
        batch = batch.to(self.device)
        if modality == IMAGE:
            return batch.image_embeds_MD
        embeds_MD: Tensor = self.token_embedding(batch.token_ids_S[~batch.is_image_S])
        return embeds_MD

    @torch.no_grad()
    def next_embeds(self, token_ids_B: Tensor) -> Tensor:
        """Tokens chosen while decoding as inputs [B, D]: text, so through the text adapter."""
        embeds_BD: Tensor = self.adapters(self.token_embedding(token_ids_B), TEXT)
        return embeds_BD

    def logits(self, outputs_ND: Tensor) -> Tensor:
        """[N, V] from what the language model returned for ``output_kind``."""
        if self.head is None:
            return outputs_ND
        logits_NV: Tensor = self.head(outputs_ND)
        return logits_NV

    def answer_nll(
        self,
        language: LanguageHalf,
        inputs_embeds_SD: Tensor,
        batch: PackedBatch,
        *,
        weight: float | None = None,
    ) -> Tensor:
        """Each example's negative log-likelihood [B]: the sum over its answer's tokens.

        ``weight`` foretells what the caller multiplies each of them with before it differentiates their sum, None their
        mean: it changes no number, and spares a loss that is computed on the server a second trip.
        """
        if isinstance(language, LossHalf):
            lengths, positions = batch.sequence_lengths, batch.output_positions
            # As autograd will have it, on the CPU: they travel.
            weights_N = torch.ones(len(positions)) * (1 / batch.example_count if weight is None else weight)
            nll_N = language.token_nll(inputs_embeds_SD, lengths, positions, batch.answer_ids_N, weights_N)
            return _by_example(nll_N, batch)
        return nll_of(self.answer_logits(language, inputs_embeds_SD, batch), batch.answer_ids_N, batch)

    def answer_logits(self, language: LanguageHalf, inputs_embeds_SD: Tensor, batch: PackedBatch) -> Tensor:
        """[N, V], where answers' tokens are predicted."""
        outputs = language.forward(inputs_embeds_SD, batch.sequence_lengths, batch.output_positions, self.output_kind)
        return self.logits(outputs)


def nll_of(logits_NV: Tensor, answer_ids_N: Tensor, batch: PackedBatch) -> Tensor:
    """The negative log-likelihood [B] of each example's part of the answers."""
    answer_ids_N = answer_ids_N.to(logits_NV.device)
    return _by_example(F.cross_entropy(logits_NV, answer_ids_N, reduction="none"), batch)


def _by_example(nll_N: Tensor, batch: PackedBatch) -> Tensor:
    nll_B = torch.zeros(batch.example_count, device=nll_N.device)
    return nll_B.index_add(0, batch.example_index_N.to(nll_N.device), nll_N)


@torch.no_grad()
def image_embeds(parts: EdgeParts, pixels_BCHW: Tensor) -> Tensor:
    """[B, P, D] through the frozen pieces: the same in every round, so that callers compute it once.

    On their device and in their type, whatever ``pixels_BCHW`` are.
    """
    like = next(parts.vision_encoder.parameters())
    embeds_BPD: Tensor = parts.connector(parts.vision_encoder(pixels_BCHW.to(device=like.device, dtype=like.dtype)))
    return embeds_BPD


def positions_of(batch: PackedBatch, modality: str) -> Tensor:
    """The positions in S that hold tokens of the modality, growing."""
    mask_S = batch.is_image_S if modality == IMAGE else ~batch.is_image_S
    return mask_S.nonzero().squeeze(1)
