"""The client's examples, encoded once: words as ids, pictures through the frozen encoders.

B: batch   P: image tokens   D: hidden size
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fednano.data.example import Example
from fednano.data.folder import load_examples
from fednano.errors import ExamplesInvalid
from fednano.model.batch import EncodedExample
from fednano.model.edge import image_embeds
from fednano.model.parts import EdgeParts
from fednano.telemetry import get_logger

ENCODER_BATCH = 64

log = get_logger("client.examples")


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
    """Raises ExamplesInvalid for a split that cannot be read, has no example, or only answers unknown to the model."""
    examples = load_examples(folder, split)
    if not examples:
        message = f"{folder} has no example in its split {split}: a client needs some of its own"
        raise ExamplesInvalid(message, file=str(folder), split=split)
    _check_answers(folder, split, examples, parts)
    encoded = [
        each
        for start in range(0, len(examples), ENCODER_BATCH)
        for each in _encode_batch(examples[start : start + ENCODER_BATCH], parts)
    ]
    return ExampleSet(examples=tuple(examples), encoded=tuple(encoded))


def _check_answers(folder: Path, split: str, examples: Sequence[Example], parts: EdgeParts) -> None:
    """An answer that the model's vocabulary cannot spell is never given: a warning, unless it is so with all."""
    processor = parts.processor
    unknown = sum(processor.text(processor.answer_ids(example.answer)) != example.answer for example in examples)
    if unknown == len(examples):
        message = (
            f"{folder}: the model {parts.manifest.model} can spell no answer of its split {split}: use another model"
        )
        raise ExamplesInvalid(message, file=str(folder), split=split)
    if unknown:
        log.warning("answers_unknown", split=split, unknown=unknown, examples=len(examples), model=parts.manifest.model)


def _encode_batch(examples: Sequence[Example], parts: EdgeParts) -> list[EncodedExample]:
    """The pictures of all of them go through the frozen pieces at one time."""
    pixels = [pixels_CHW for example in examples for pixels_CHW in _pixels(example, parts)]
    embeds = iter(image_embeds(parts, torch.stack(pixels)) if pixels else ())
    return [_encode(example, list(islice(embeds, len(example.images))), parts) for example in examples]


def _pixels(example: Example, parts: EdgeParts) -> Iterator[Tensor]:
    for path in example.images:
        try:
            with Image.open(path) as image:
                yield parts.processor.pixels(image)
        except (UnidentifiedImageError, OSError) as error:
            message = f"example {example.pid}: {path} is no picture that can be read ({type(error).__name__})"
            raise ExamplesInvalid(message, file=str(path), pid=example.pid, field="image") from None


def _encode(example: Example, embeds: list[Tensor], parts: EdgeParts) -> EncodedExample:
    width = parts.token_embedding.embedding_dim
    return EncodedExample(
        prompt_ids=tuple(parts.processor.prompt_ids(example.prompt)),
        answer_ids=tuple(parts.processor.answer_ids(example.answer)),
        image_embeds_PD=torch.cat(embeds) if embeds else torch.zeros(0, width),
    )
