"""The settings file as values."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Section):
    hidden_size: int
    language_layer_count: int
    language_head_count: int
    language_mlp_width: int
    vision_width: int
    vision_layer_count: int
    vision_head_count: int
    connector_width: int
    image_side_px: int
    image_token_count: int


class StageSettings(Section):
    """The learning rate falls over ``schedule_step_count``; a smaller ``step_count`` stops early."""

    step_count: int
    schedule_step_count: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_step_count: int
    doubled_skills: tuple[str, ...]


class EncoderStageSettings(StageSettings):
    cell_loss_weight: float


class LanguageStageSettings(StageSettings):
    caption_share: float


class EvaluationSettings(Section):
    scene_count: int
    every_step_count: int


class Settings(Section):
    seed: int
    thread_count: int
    model: ModelSettings
    encoder_stage: EncoderStageSettings
    language_stage: LanguageStageSettings
    evaluation: EvaluationSettings


def read_settings(path: Path) -> Settings:
    return Settings.model_validate(tomllib.loads(path.read_text()))
