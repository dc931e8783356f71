"""Looks through a whole folder of examples and counts what is in it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fednano.data.example import Example
from fednano.data.folder import ExampleFolder, main_splits, missing_images
from fednano.errors import ExamplesInvalid


@dataclass(frozen=True, kw_only=True)
class SplitCensus:
    """``images`` and ``missing_images`` count pictures; ``lacking`` counts the examples that lack one."""

    examples: int
    images: int
    missing_images: int
    lacking: int
    tasks: dict[str, int]
    topics: dict[str, int]


def take_census(folder: ExampleFolder) -> dict[str, SplitCensus]:
    """By split. Raises ExamplesInvalid for a record that is wrong, and for a picture that is there but none."""
    return {split: _census(folder.read(split)) for split in main_splits(folder)}


def _census(examples: list[Example]) -> SplitCensus:
    for example in examples:
        for image in example.images:
            if image.is_file():
                _check_picture(example, image)
    missing = [len(missing_images(example)) for example in examples]
    return SplitCensus(
        examples=len(examples),
        images=sum(len(example.images) for example in examples),
        missing_images=sum(missing),
        lacking=sum(map(bool, missing)),
        tasks=_counts(example.task for example in examples if example.task),
        topics=_counts(example.topic for example in examples if example.topic),
    )


def _check_picture(example: Example, path: Path) -> None:
    try:
        with Image.open(path) as image:
            # To its last line, as training does: of a JPEG cut short, verify() finds nothing wrong.
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        message = f"example {example.pid}: {path} is no picture that can be read ({type(error).__name__})"
        raise ExamplesInvalid(message, file=str(path), pid=example.pid, field="image") from None


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
