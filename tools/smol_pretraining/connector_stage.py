"""The connector learns what to say to the frozen language model: which words are in a picture, then what is asked.

B: batch   P: image tokens   E: vision width   D: hidden size   W: words of captions   N: answer positions
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from nano_pretraining.encoder_stage import DOMAINS
from nano_pretraining.settings import StageSettings
from nano_pretraining.training import Checkpoint, Log, evaluation_seed, run_steps, step_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fednano.data.icons.draw import Domain
from fednano.data.icons.generate import generate
from fednano.data.icons.questions import question
from fednano.data.icons.scenes import SKILLS, Scene
from fednano.model.connector import Connector
from fednano.prompt import Prompt
from smol_pretraining.frozen import Frozen, Turn
from smol_pretraining.settings import Settings

_STAGE = 2
_ENCODED = 32
_SAVED_EVERY = 10
_DESCRIBE = "Describe this picture."


class AlignedConnector(nn.Module):
    """The connector behind standardised features, and what is trained beside it and thrown away."""

    def __init__(self, settings: Settings, features_BPE: Tensor, word_embeds_WD: Tensor) -> None:
        super().__init__()
        self.mean_E: Tensor
        self.std_E: Tensor
        self.word_embeds_WD: Tensor
        self.register_buffer("mean_E", features_BPE.mean(dim=(0, 1)))
        self.register_buffer("std_E", features_BPE.std(dim=(0, 1)) + 1e-4)
        self.register_buffer("word_embeds_WD", word_embeds_WD)
        self.connector = Connector(
            vision_width=features_BPE.shape[2],
            connector_width=settings.connector_width,
            hidden_size=word_embeds_WD.shape[1],
        )
        self.word_bias_W = nn.Parameter(torch.full((len(word_embeds_WD),), -5.0))
        self.log_scale = nn.Parameter(torch.zeros(()))
        # What comes out is as large as the words that the language model is used to.
        with torch.no_grad():
            size = self(features_BPE).pow(2).mean().sqrt()
            self.connector.layers[2].weight *= word_embeds_WD.pow(2).mean().sqrt() / size

    def forward(self, features_BPE: Tensor) -> Tensor:
        image_embeds_BPD: Tensor = self.connector((features_BPE - self.mean_E) / self.std_E)
        return image_embeds_BPD

    def align_loss(self, image_embeds_BPD: Tensor, words_BW: Tensor) -> Tensor:
        """Whether some token of the picture is like the word's embedding, for each word."""
        likeness_BPW = F.normalize(image_embeds_BPD, dim=2) @ F.normalize(self.word_embeds_WD, dim=1).T
        logits_BW = (10 * self.log_scale.exp() * likeness_BPW).logsumexp(dim=1) + self.word_bias_W
        return F.binary_cross_entropy_with_logits(logits_BW, words_BW)

    @torch.no_grad()
    def folded(self) -> Connector:
        """The connector for features as they come, rounded to what will be stored."""
        first, _, second = self.connector.layers
        result = Connector(
            vision_width=first.in_features, connector_width=first.out_features, hidden_size=second.out_features
        )
        weight = first.weight / self.std_E
        result.layers[0].weight.copy_(weight.bfloat16())
        result.layers[0].bias.copy_((first.bias - weight @ self.mean_E).bfloat16())
        result.layers[2].weight.copy_(second.weight.bfloat16())
        result.layers[2].bias.copy_(second.bias.bfloat16())
        return result.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Scenes of domain A, what the encoder makes of them, and which words their captions have."""

    scenes: Sequence[Scene]
    features_BPE: Tensor
    word_ids: Sequence[int]
    words_BW: Tensor


def train_connector(settings: Settings, frozen: Frozen, folder: Path, log: Log) -> Connector:
    torch.manual_seed(step_seed(settings.seed, _STAGE, 0))
    pictures = _pictures(settings, frozen, folder / "pictures.safetensors")
    log(f"{len(pictures.scenes)} pictures encoded, {len(pictures.word_ids)} words")
    word_embeds_WD = frozen.language_model.model.embed_tokens.weight[list(pictures.word_ids)].float()
    module = AlignedConnector(settings, pictures.features_BPE, word_embeds_WD)

    def align_loss(step: int) -> Tensor:
        rows = _rows(settings, settings.align_stage, _STAGE, step)
        return module.align_loss(module(pictures.features_BPE[rows]), pictures.words_BW[rows])

    def answer_loss(step: int) -> Tensor:
        rows = _rows(settings, settings.language_stage, _STAGE + 1, step)
        turns = _turns([pictures.scenes[row] for row in rows], frozen, settings, step)
        image_embeds_BPD = module(pictures.features_BPE[rows])
        logits_NV, targets_N, _ = frozen.answer_logits(image_embeds_BPD, turns)
        aside = module.align_loss(image_embeds_BPD, pictures.words_BW[rows])
        return F.cross_entropy(logits_NV, targets_N) + settings.align_weight * aside

    for name, stage, loss in (
        ("align", settings.align_stage, align_loss),
        ("language", settings.language_stage, answer_loss),
    ):
        _run(name, stage, loss, module, frozen, settings, folder, log)
    return module.folded()


def _run(
    name: str,
    stage: StageSettings,
    loss_of_step: Callable[[int], Tensor],
    module: AlignedConnector,
    frozen: Frozen,
    settings: Settings,
    folder: Path,
    log: Log,
) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)
    losses: list[float] = []

    def after_step(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % 20 == 0:
            log(f"{name} step {step + 1} loss {sum(losses[-20:]) / len(losses[-20:]):.4f}")
        if name == "language" and (step + 1) % settings.evaluation.every_step_count == 0:
            log_accuracy(module, frozen, settings, log)

    checkpoint = Checkpoint(folder / f"{name}.safetensors")
    run_steps(
        module,
        optimizer,
        stage,
        checkpoint,
        loss_of_step=loss_of_step,
        after_step=after_step,
        saved_every=_SAVED_EVERY,
    )


def _pictures(settings: Settings, frozen: Frozen, kept: Path) -> Pictures:
    scenes = list(generate(settings.picture_count, "A", step_seed(settings.seed, _STAGE, 0)))
    if not kept.exists():
        features = [frozen.features(scenes[start : start + _ENCODED]) for start in range(0, len(scenes), _ENCODED)]
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features_BPE": torch.cat(features)}, kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)
    captions = [set(_caption_ids(scene, frozen)) for scene in scenes]
    word_ids = sorted(set().union(*captions))
    words_BW = torch.tensor([[float(word in caption) for word in word_ids] for caption in captions])
    return Pictures(scenes=scenes, features_BPE=load_file(kept)["features_BPE"], word_ids=word_ids, words_BW=words_BW)


def _rows(settings: Settings, stage: StageSettings, number: int, step: int) -> list[int]:
    return Random(step_seed(settings.seed, number, step)).sample(range(settings.picture_count), stage.batch_size)


@torch.no_grad()
def log_accuracy(connector: nn.Module, frozen: Frozen, settings: Settings, log: Log) -> None:
    """Exact match by skill, as greedy decoding gives it: an answer is right where every one of its tokens is."""
    for domain in DOMAINS:
        shares = _exact_match(connector, frozen, settings, domain)
        mean = sum(shares.values()) / len(shares)
        by_skill = " ".join(f"{skill} {share:.2f}" for skill, share in shares.items())
        log(f"exact match domain {domain}: mean {mean:.3f} {by_skill}")


def _exact_match(connector: nn.Module, frozen: Frozen, settings: Settings, domain: Domain) -> Mapping[str, float]:
    scenes = list(generate(settings.evaluation.scene_count, domain, evaluation_seed(settings.seed)))
    random = Random(evaluation_seed(settings.seed))
    wrong_rows: set[int] = set()
    for start in range(0, len(scenes), 40):
        part = scenes[start : start + 40]
        turns = [_turn(frozen, question(scene, domain, random), scene.drawing.answer) for scene in part]
        logits_NV, targets_N, rows_N = frozen.answer_logits(connector(frozen.features(part)), turns)
        wrong_rows.update((rows_N[logits_NV.argmax(dim=1) != targets_N] + start).tolist())
    rows_of = {skill: [row for row, scene in enumerate(scenes) if scene.skill == skill] for skill in SKILLS}
    return {skill: 1 - len(wrong_rows.intersection(rows)) / len(rows) for skill, rows in rows_of.items()}


def _turns(scenes: Sequence[Scene], frozen: Frozen, settings: Settings, step: int) -> list[Turn]:
    random = Random(f"turns/{settings.seed}/{step}")
    turns = []
    for scene in scenes:
        asked, answer = question(scene, "A", random), scene.drawing.answer
        if random.random() < settings.caption_share:
            asked, answer = _DESCRIBE, scene.drawing.caption
        turns.append(_turn(frozen, asked, answer))
    return turns


def _turn(frozen: Frozen, asked: str, answer: str) -> Turn:
    processor = frozen.processor
    return Turn(prompt_ids=processor.prompt_ids(Prompt(question=asked)), answer_ids=processor.answer_ids(answer))


def _caption_ids(scene: Scene, frozen: Frozen) -> list[int]:
    return frozen.processor.answer_ids(f" {scene.drawing.caption}")[:-1]
