"""The settings file as values."""

import tomllib
from pathlib import Path

from nano_pretraining.settings import EvaluationSettings, Section, StageSettings


class Settings(Section):
    """``align_weight`` is that of the first stage's loss within the second's."""

    seed: int
    thread_count: int
    grid_side: int
    connector_width: int
    picture_count: int
    align_weight: float
    caption_share: float
    align_stage: StageSettings
    language_stage: StageSettings
    evaluation: EvaluationSettings


def read_settings(path: Path) -> Settings:
    return Settings.model_validate(tomllib.loads(path.read_text()))
