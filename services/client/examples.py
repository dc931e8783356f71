"""The client's examples, encoded once: words as ids, pictures through the frozen encoders.

B: batch   P: image tokens   D: hidden size
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fednano.data.example import Example
from fednano.data.iconqa import load_iconqa
from fednano.errors import ExamplesInvalid
from fednano.model.batch import EncodedExample
from fednano.model.edge import image_embeds
from fednano.model.parts import EdgeParts

ENCODER_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """A split: as it is on disk, and as the edge computes with it, in the same order."""

    examples: tuple[Example, ...]
    encoded: tuple[EncodedExample, ...]

    @property
    def sha256(self) -> str:
        """Changes where an example, its words or their order do; pictures are known by their examples' ids."""
        digest = hashlib.sha256()
        for example, encoded in zip(self.examples, self.encoded, strict=True):
            digest.update(json.dumps([example.pid, encoded.prompt_ids, encoded.answer_ids]).encode())
        return digest.hexdigest()


def load_example_set(folder: Path, split: str, parts: EdgeParts) -> ExampleSet:
    """Raises ExamplesInvalid for a split that cannot be read or has no example."""
    examples = load_iconqa(folder, split)
    if not examples:
        message = f"{folder} has no example in its split {split}: a client needs some of its own"
        raise ExamplesInvalid(message, file=str(folder), split=split)
    embeds = [
        embeds_PD
        for start in range(0, len(examples), ENCODER_BATCH)
        for embeds_PD in _image_embeds(examples[start : start + ENCODER_BATCH], parts)
    ]
    encoded = [_encode(example, embeds_PD, parts) for example, embeds_PD in zip(examples, embeds, strict=True)]
    return ExampleSet(examples=tuple(examples), encoded=tuple(encoded))


def _image_embeds(examples: Sequence[Example], parts: EdgeParts) -> Tensor:
    pixels = []
    for example in examples:
        with Image.open(example.image) as image:
            pixels.append(parts.processor.pixels(image))
    return image_embeds(parts, torch.stack(pixels))


def _encode(example: Example, embeds_PD: Tensor, parts: EdgeParts) -> EncodedExample:
    return EncodedExample(
        prompt_ids=tuple(parts.processor.prompt_ids(example.question, example.choices)),
        answer_ids=tuple(parts.processor.answer_ids(example.answer)),
        image_embeds_PD=embeds_PD,
    )
