"""The frozen pieces around the connector: pictures to features, and embeddings to the logits of answers.

B: batch   C: channels   H, W: height and width   T: tokens   P: image tokens   E: vision width   D: hidden size
N: answer positions   V: vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from fednano.data.icons.scenes import Scene
from fednano.model.families.chat import ChatProcessor

_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What stands before the answer, and the answer with the token that ends it."""

    prompt_ids: list[int]
    answer_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """``language_model`` is in bfloat16, the encoder in float32."""

    encoder: nn.Module
    language_model: LlamaForCausalLM
    processor: ChatProcessor

    @torch.no_grad()
    def features(self, scenes: Sequence[Scene]) -> Tensor:
        """[B, P, E]."""
        pixels_BCHW = torch.stack([self.processor.pixels(scene.image) for scene in scenes])
        features_BPE: Tensor = self.encoder(pixels_BCHW.to(memory_format=torch.channels_last))
        return features_BPE

    def answer_logits(self, image_embeds_BPD: Tensor, turns: Sequence[Turn]) -> tuple[Tensor, Tensor, Tensor]:
        """logits_NV and target_ids_N over all answer positions, and the row of the batch that each belongs to.

        Rows are padded on the right, where causal attention never looks from the left: no mask is needed.
        """
        ids_BT, next_ids_BT = self._padded(turns)
        is_image_BT = ids_BT == self.processor.image_token_id
        embedding = self.language_model.model.embed_tokens
        embeds_BTD = embedding(ids_BT.masked_fill(is_image_BT, 0))
        embeds_BTD = embeds_BTD.masked_scatter(is_image_BT[..., None], image_embeds_BPD.to(embeds_BTD.dtype))
        hidden_BTD = self.language_model.model(inputs_embeds=embeds_BTD, use_cache=False)[0]
        kept_BT = next_ids_BT != _IGNORED
        logits_NV = self.language_model.lm_head(hidden_BTD[kept_BT]).float()
        return logits_NV, next_ids_BT[kept_BT], kept_BT.nonzero()[:, 0]

    def _padded(self, turns: Sequence[Turn]) -> tuple[Tensor, Tensor]:
        length = max(len(turn.prompt_ids) + len(turn.answer_ids) for turn in turns) - 1
        ids_BT = torch.full((len(turns), length), self.processor.eos_token_id)
        next_ids_BT = torch.full((len(turns), length), _IGNORED)
        for row, turn in enumerate(turns):
            ids = [*turn.prompt_ids, *turn.answer_ids]
            ids_BT[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            next_ids_BT[row, len(turn.prompt_ids) - 1 : len(ids) - 1] = torch.tensor(turn.answer_ids)
        return ids_BT, next_ids_BT
