"""The client's examples: words as ids in memory, pictures' features fetched for those that are looked at.

B: batch   P: image tokens   D: hidden size
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch

from fednano.data.example import Example
from fednano.data.folder import load_examples
from fednano.errors import ExamplesInvalid
from fednano.model.batch import EncodedExample
from fednano.model.parts import EdgeParts
from fednano.telemetry import get_logger
from services.client.features import Features
from services.client.pictures import Picture

# Examples whose features are fetched at one time where all are gone through.
READ_AHEAD = 32

log = get_logger("client.examples")


@dataclass(frozen=True, kw_only=True)
class Words:
    """An example without its pictures' features."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    pictures: tuple[Picture, ...]


class EncodedExamples(Sequence[EncodedExample]):
    """Examples as the edge computes with them, made as they are taken: what is not held on to takes no memory."""

    def __init__(self, words: Sequence[Words], features: Features, width: int) -> None:
        self.words, self.features, self.width = words, features, width

    def __len__(self) -> int:
        return len(self.words)

    @overload
    def __getitem__(self, index: int) -> EncodedExample: ...
    @overload
    def __getitem__(self, index: slice) -> "EncodedExamples": ...
    def __getitem__(self, index: int | slice) -> "EncodedExample | EncodedExamples":
        if isinstance(index, slice):
            return EncodedExamples(self.words[index], self.features, self.width)
        return self._fetched([self.words[index]])[0]

    def __iter__(self) -> Iterator[EncodedExample]:
        for start in range(0, len(self.words), READ_AHEAD):
            yield from self._fetched(self.words[start : start + READ_AHEAD])

    def _fetched(self, words: Sequence[Words]) -> list[EncodedExample]:
        embeds_PD_of = self.features.of(picture for one in words for picture in one.pictures)
        none_PD = torch.zeros(0, self.width)
        return [
            EncodedExample(
                prompt_ids=one.prompt_ids,
                answer_ids=one.answer_ids,
                image_embeds_PD=torch.cat([none_PD, *(embeds_PD_of[picture.path] for picture in one.pictures)]),
            )
            for one in words
        ]


@dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """A split: as it is on disk, and as the edge computes with it, in the same order."""

    examples: tuple[Example, ...]
    encoded: EncodedExamples

    @property
    def sha256(self) -> str:
        """Changes where an example, its words, its pictures or their order do."""
        digest, sha256_of = hashlib.sha256(), self.encoded.features.sha256_of
        for example, words in zip(self.examples, self.encoded.words, strict=True):
            pictures = [sha256_of(picture.path) for picture in words.pictures]
            digest.update(json.dumps([example.pid, words.prompt_ids, words.answer_ids, pictures]).encode())
        return digest.hexdigest()


def load_example_set(
    folder: Path,
    split: str,
    parts: EdgeParts,
    features: Features | None = None,
    check: Callable[[], None] = lambda: None,
) -> ExampleSet:
    """Raises ExamplesInvalid for a split that cannot be read, has no example, or only answers unknown to the model.

    ``check`` is called while it works, and may raise to end it.
    """
    examples = load_examples(folder, split)
    if not examples:
        message = f"{folder} has no example in its split {split}: a client needs some of its own"
        raise ExamplesInvalid(message, file=str(folder), split=split)
    unknown = unknown_answers(examples, parts)
    if unknown == len(examples):
        message = (
            f"{folder}: the model {parts.manifest.model} can spell no answer of its split {split}: use another model"
        )
        raise ExamplesInvalid(message, file=str(folder), split=split)
    if unknown:
        log.warning("answers_unknown", split=split, unknown=unknown, examples=len(examples), model=parts.manifest.model)
    words = [_words(example, parts) for example in examples]
    features = features or Features(parts)
    features.prepare(split, [picture for one in words for picture in one.pictures], check)
    return ExampleSet(
        examples=tuple(examples), encoded=EncodedExamples(words, features, parts.token_embedding.embedding_dim)
    )


def joined(sets: Sequence[ExampleSet]) -> ExampleSet:
    """The examples of all, one set after the other. They must share their features."""
    first = sets[0].encoded
    words = [words for one in sets for words in one.encoded.words]
    return ExampleSet(
        examples=tuple(example for one in sets for example in one.examples),
        encoded=EncodedExamples(words, first.features, first.width),
    )


def chosen(examples: Sequence[EncodedExample], indices: Sequence[int]) -> Sequence[EncodedExample]:
    """These examples, in this order."""
    if isinstance(examples, EncodedExamples):
        return EncodedExamples([examples.words[index] for index in indices], examples.features, examples.width)
    return [examples[index] for index in indices]


def unknown_answers(examples: Sequence[Example], parts: EdgeParts) -> int:
    """How many answers the model's vocabulary cannot spell: it never gives them."""
    processor = parts.processor
    return sum(processor.text(processor.answer_ids(example.answer)) != example.answer for example in examples)


def _words(example: Example, parts: EdgeParts) -> Words:
    return Words(
        prompt_ids=tuple(parts.processor.prompt_ids(example.prompt)),
        answer_ids=tuple(parts.processor.answer_ids(example.answer)),
        pictures=tuple(Picture(path=path, pid=example.pid) for path in example.images),
    )
