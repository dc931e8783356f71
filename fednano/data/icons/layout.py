"""Writes scenes and their questions in the official IconQA layout, as problems of the task fill_in_blank."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fednano.data.iconqa import FILL_IN_BLANK, PROBLEMS_FILE, SKILLS_FILE, SPLITS_FILE
from fednano.data.icons.scenes import Scene


@dataclass(frozen=True, kw_only=True)
class AskedScene:
    """A scene, a question about it, and the id it has among all scenes of a federation."""

    pid: str
    scene: Scene
    question: str


def write_iconqa(folder: Path, asked_of_split: Mapping[str, Sequence[AskedScene]]) -> None:
    """Fills ``folder``, which must not exist yet. The same scenes give the same bytes, images too."""
    folder.mkdir(parents=True)
    problems, skills = {}, {}
    for split, asked_scenes in asked_of_split.items():
        for asked in asked_scenes:
            problems[asked.pid] = _record(asked, split)
            skills[asked.pid] = [asked.scene.skill]
            image = folder / "iconqa" / split / FILL_IN_BLANK / asked.pid / "image.png"
            image.parent.mkdir(parents=True)
            asked.scene.image.save(image)
    pids = {f"{FILL_IN_BLANK}_{split}": [asked.pid for asked in each] for split, each in asked_of_split.items()}
    for name, content in ((PROBLEMS_FILE, problems), (SPLITS_FILE, pids), (SKILLS_FILE, skills)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def _record(asked: AskedScene, split: str) -> dict[str, str]:
    return {
        "question": asked.question,
        "answer": asked.scene.drawing.answer,
        "ques_type": FILL_IN_BLANK,
        "grade": "grade1",
        "label": "icons",
        "split": split,
    }
