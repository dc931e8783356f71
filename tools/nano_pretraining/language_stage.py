"""Stage 1: the connector and the language model learn to answer and to describe, in domain A, on the frozen encoder.

B: batch   T: tokens   P: image tokens   E: vision width   D: hidden size   V: vocabulary   N: answer positions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from fednano.data.icons.draw import Domain
from fednano.data.icons.generate import generate
from fednano.data.icons.questions import question
from fednano.data.icons.scenes import SKILLS, Scene
from fednano.model.connector import Connector
from fednano.model.nano import BOS, EOS, PAD, NanoProcessor
from fednano.model.vision import NanoVisionEncoder
from fednano.prompt import Prompt
from nano_pretraining.encoder_stage import DOMAINS, pixels_of, skills_of
from nano_pretraining.settings import ModelSettings, Settings
from nano_pretraining.training import Checkpoint, Log, evaluation_seed, run_steps, step_seed

_STAGE = 1
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What stands before the answer, and the answer with the token that ends it."""

    prompt_ids: list[int]
    answer_ids: list[int]


class ConnectedLanguageModel(nn.Module):
    def __init__(self, model: ModelSettings, words: dict[str, int]) -> None:
        super().__init__()
        self.connector = Connector(
            vision_width=model.vision_width, connector_width=model.connector_width, hidden_size=model.hidden_size
        )
        self.language_model = LlamaForCausalLM(_llama_config(model, words))
        self.pad_id, self.image_token_count = words[PAD], model.image_token_count

    def answer_logits(self, features_BPE: Tensor, turns: Sequence[Turn]) -> tuple[Tensor, Tensor, Tensor]:
        """logits_NV and target_ids_N over all answer positions, and the row of the batch that each belongs to.

        Rows are padded on the right, where causal attention never looks from the left: no mask is needed.
        """
        ids_BT, labels_BT = self._padded(turns)
        embeds_BTD = self.language_model.model.embed_tokens(ids_BT)
        # The first token, then the image's tokens in place of their placeholders, then the text.
        text_start = 1 + self.image_token_count
        parts = (embeds_BTD[:, :1], self.connector(features_BPE), embeds_BTD[:, text_start:])
        hidden_BTD = self.language_model.model(inputs_embeds=torch.cat(parts, dim=1), use_cache=False)[0]
        next_labels_BT = labels_BT[:, 1:]
        kept_BT = next_labels_BT != _IGNORED
        logits_NV = self.language_model.lm_head(hidden_BTD[:, :-1][kept_BT])
        return logits_NV, next_labels_BT[kept_BT], kept_BT.nonzero()[:, 0]

    def _padded(self, turns: Sequence[Turn]) -> tuple[Tensor, Tensor]:
        length = max(len(turn.prompt_ids) + len(turn.answer_ids) for turn in turns)
        ids_BT = torch.full((len(turns), length), self.pad_id)
        labels_BT = torch.full((len(turns), length), _IGNORED)
        for row, turn in enumerate(turns):
            start, end = len(turn.prompt_ids), len(turn.prompt_ids) + len(turn.answer_ids)
            ids_BT[row, :end] = torch.tensor([*turn.prompt_ids, *turn.answer_ids])
            labels_BT[row, start:end] = torch.tensor(turn.answer_ids)
        return ids_BT, labels_BT


def train_language_model(
    settings: Settings,
    encoder: NanoVisionEncoder,
    processor: NanoProcessor,
    words: dict[str, int],
    folder: Path,
    log: Log,
) -> ConnectedLanguageModel:
    torch.manual_seed(step_seed(settings.seed, _STAGE, 0))
    module, stage = ConnectedLanguageModel(settings.model, words), settings.language_stage
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay, betas=(0.9, 0.98)
    )

    def loss_of_step(step: int) -> Tensor:
        seed = step_seed(settings.seed, _STAGE, step)
        scenes, random = list(generate(stage.batch_size, "A", seed, skills_of(stage, step))), Random(seed)
        turns = [_turn(scene, processor, random, stage.caption_share) for scene in scenes]
        logits_NV, targets_N, _ = module.answer_logits(encoder(pixels_of(scenes)), turns)
        return F.cross_entropy(logits_NV, targets_N)

    def after_step(step: int, loss: float) -> None:
        if (step + 1) % 100 == 0:
            log(f"language step {step + 1} loss {loss:.3f}")
        if (step + 1) % settings.evaluation.every_step_count == 0:
            log_accuracy(module, encoder, processor, settings, log)

    checkpoint = Checkpoint(folder / "language.safetensors")
    run_steps(module, optimizer, stage, checkpoint, loss_of_step=loss_of_step, after_step=after_step)
    return module.eval().requires_grad_(False)


@torch.no_grad()
def log_accuracy(
    module: ConnectedLanguageModel,
    encoder: NanoVisionEncoder,
    processor: NanoProcessor,
    settings: Settings,
    log: Log,
) -> None:
    """Exact match by skill, as greedy decoding gives it: an answer is right where every one of its tokens is."""
    module.eval()
    for domain in DOMAINS:
        shares = _exact_match(module, encoder, processor, domain, settings)
        mean = sum(shares.values()) / len(shares)
        by_skill = " ".join(f"{skill} {share:.3f}" for skill, share in shares.items())
        log(f"exact match domain {domain}: mean {mean:.3f} {by_skill}")
    module.train()


def _exact_match(
    module: ConnectedLanguageModel,
    encoder: NanoVisionEncoder,
    processor: NanoProcessor,
    domain: Domain,
    settings: Settings,
) -> dict[str, float]:
    scenes = list(generate(settings.evaluation.scene_count, domain, evaluation_seed(settings.seed)))
    random = Random(evaluation_seed(settings.seed))
    turns = [
        Turn(
            prompt_ids=processor.prompt_ids(Prompt(question=question(scene, domain, random))),
            answer_ids=processor.answer_ids(scene.drawing.answer),
        )
        for scene in scenes
    ]
    logits_NV, targets_N, rows_N = module.answer_logits(encoder(pixels_of(scenes)), turns)
    wrong_rows = set(rows_N[logits_NV.argmax(dim=1) != targets_N].tolist())
    rows_of = {skill: [row for row, scene in enumerate(scenes) if scene.skill == skill] for skill in SKILLS}
    return {skill: 1 - len(wrong_rows.intersection(rows)) / len(rows) for skill, rows in rows_of.items()}


def _turn(scene: Scene, processor: NanoProcessor, random: Random, caption_share: float) -> Turn:
    asked, answer = question(scene, "A", random), scene.drawing.answer
    if random.random() < caption_share:
        asked, answer = "describe", scene.drawing.caption
    return Turn(prompt_ids=processor.prompt_ids(Prompt(question=asked)), answer_ids=processor.answer_ids(answer))


def _llama_config(model: ModelSettings, words: dict[str, int]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=model.hidden_size,
        intermediate_size=model.language_mlp_width,
        num_hidden_layers=model.language_layer_count,
        num_attention_heads=model.language_head_count,
        num_key_value_heads=model.language_head_count,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=words[PAD],
        bos_token_id=words[BOS],
        eos_token_id=words[EOS],
    )
