"""Stage 0: the vision encoder learns to name what is in a picture, in both domains.

B: batch   C: colour channels   H, W: height and width in pixels   P: image tokens   E: vision width
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fednano.data.icons.draw import Domain
from fednano.data.icons.generate import generate
from fednano.data.icons.scenes import SKILLS, Scene
from fednano.model.vision import NanoVisionEncoder
from nano_pretraining.settings import ModelSettings, Settings, StageSettings
from nano_pretraining.supervision import SupervisionHeads, cell_targets, picture_targets
from nano_pretraining.training import Checkpoint, Log, evaluation_seed, run_steps, step_seed

DOMAINS: tuple[Domain, ...] = ("A", "B")
_STAGE = 0


class EncoderWithHeads(nn.Module):
    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.encoder = new_encoder(model)
        nn.init.normal_(self.encoder.positions_PE, std=0.02)
        for index, convolution in enumerate(self.encoder.stem):
            assert isinstance(convolution, nn.Conv2d)
            self.encoder.stem[index] = nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))
        self.heads = SupervisionHeads(model.vision_width)

    def loss(self, scenes_of_domain: Mapping[str, Sequence[Scene]], cell_loss_weight: float) -> Tensor:
        # One pass over both domains: normalised apart, they would fit no common running statistics.
        features_BPE = self.encoder(pixels_of([scene for each in scenes_of_domain.values() for scene in each]))
        parts = features_BPE.split([len(each) for each in scenes_of_domain.values()])
        losses = []
        for (domain, scenes), part_BPE in zip(scenes_of_domain.items(), parts, strict=True):
            losses.append(self.heads.picture_loss(part_BPE, picture_targets(scenes), domain))
            losses.append(cell_loss_weight * self.heads.cell_loss(part_BPE, cell_targets(scenes), domain))
        return torch.stack(losses).sum() / len(parts)


def train_encoder(settings: Settings, folder: Path, log: Log) -> NanoVisionEncoder:
    """The trained encoder, its normalisation folded away and its weights rounded to what will be stored."""
    torch.manual_seed(step_seed(settings.seed, _STAGE, 0))
    module, stage = EncoderWithHeads(settings.model), settings.encoder_stage
    optimizer = torch.optim.AdamW(module.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)

    def loss_of_step(step: int) -> Tensor:
        seed, half = step_seed(settings.seed, _STAGE, step), stage.batch_size // 2
        skills = skills_of(stage, step)
        scenes = {domain: list(generate(half, domain, seed, skills)) for domain in DOMAINS}
        return module.loss(scenes, stage.cell_loss_weight)

    def after_step(step: int, loss: float) -> None:
        if (step + 1) % 100 == 0:
            log(f"encoder step {step + 1} loss {loss:.3f}")
        if (step + 1) % settings.evaluation.every_step_count == 0:
            _log_accuracy(module, settings, log)

    checkpoint = Checkpoint(folder / "encoder.safetensors")
    run_steps(module, optimizer, stage, checkpoint, loss_of_step=loss_of_step, after_step=after_step)
    return _folded(module.encoder, settings.model)


def new_encoder(model: ModelSettings) -> NanoVisionEncoder:
    return NanoVisionEncoder(
        vision_width=model.vision_width,
        layer_count=model.vision_layer_count,
        head_count=model.vision_head_count,
        image_token_count=model.image_token_count,
    )


def skills_of(stage: StageSettings, step: int) -> list[str]:
    """The skills in turn, some of them twice, from another one on in each step."""
    skills = [*SKILLS, *stage.doubled_skills]
    start = step % len(skills)
    return skills[start:] + skills[:start]


def pixels_of(scenes: Iterable[Scene]) -> Tensor:
    """[B, C, H, W] float32, scaled as NanoProcessor does it."""
    values_BHWC = np.stack([np.asarray(scene.image) for scene in scenes])
    return torch.from_numpy(values_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _log_accuracy(module: EncoderWithHeads, settings: Settings, log: Log) -> None:
    module.eval()
    for domain in DOMAINS:
        scenes = list(generate(settings.evaluation.scene_count, domain, evaluation_seed(settings.seed)))
        features_BPE = module.encoder(pixels_of(scenes))
        pictures = module.heads.picture_accuracy(features_BPE, picture_targets(scenes), domain)
        cells = module.heads.cell_accuracy(features_BPE, cell_targets(scenes), domain)
        log(f"encoder accuracy domain {domain}: pictures {pictures} cells {cells}")
    module.train()


@torch.no_grad()
def _folded(encoder: NanoVisionEncoder, model: ModelSettings) -> NanoVisionEncoder:
    result = new_encoder(model)
    state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("stem.")}
    for index, block in enumerate(encoder.stem):
        assert isinstance(block, nn.Sequential)
        convolution, norm = block
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        fused = torch.nn.utils.fuse_conv_bn_eval(convolution.eval(), norm.eval())
        state |= {f"stem.{index}.{name}": tensor for name, tensor in fused.state_dict().items()}
    result.load_state_dict({name: tensor.bfloat16().float() for name, tensor in state.items()})
    return result.eval().requires_grad_(False)
