"""A folder of examples in any of the layouts that are known, told apart by the files in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fednano.data.example import Example
from fednano.data.iconqa import PROBLEMS_FILE, SKILLS_FILE, open_iconqa
from fednano.data.jsonl import EXAMPLES_FILE, open_jsonl
from fednano.data.scienceqa import open_scienceqa
from fednano.errors import ExamplesInvalid

MAIN_SPLITS = ("train", "val", "test")


class ExampleFolder(Protocol):
    """What every layout offers."""

    @property
    def path(self) -> Path: ...

    @property
    def splits(self) -> tuple[str, ...]: ...

    def read(self, split: str) -> list[Example]:
        """The split's checked examples in their order. Whether their images are there is not looked at."""
        ...

    def subset_files(self, pids_of_split: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
        """The files, by name, of a folder in the same layout that has only these examples."""
        ...


def open_folder(folder: Path) -> ExampleFolder:
    """Raises ExamplesInvalid for a folder in no layout that is known."""
    if (folder / EXAMPLES_FILE).is_file():
        return open_jsonl(folder)
    if (folder / PROBLEMS_FILE).is_file():
        return open_iconqa(folder) if (folder / SKILLS_FILE).is_file() else open_scienceqa(folder)
    message = (
        f"{folder} has no examples: it needs {EXAMPLES_FILE}, or {PROBLEMS_FILE} with its splits as ScienceQA or"
        " IconQA have them"
    )
    raise ExamplesInvalid(message, file=str(folder))


def load_examples(folder: Path, split: str, *, allow_missing_images: bool = False) -> list[Example]:
    """A split's examples whose images are all there; see ``examples_of``."""
    return examples_of(open_folder(folder), split, allow_missing_images=allow_missing_images)


def examples_of(folder: ExampleFolder, split: str, *, allow_missing_images: bool = False) -> list[Example]:
    """A split's examples whose images are all there.

    Raises ExamplesInvalid where one is missing, unless those examples may be left out.
    """
    examples = folder.read(split)
    lacking = [example for example in examples if missing_images(example)]
    if lacking and not allow_missing_images:
        first = lacking[0]
        message = (
            f"{folder.path}: {len(lacking)} of {len(examples)} {split} examples lack an image,"
            f" the first is {first.pid}: {missing_images(first)[0]} is no file"
        )
        raise ExamplesInvalid(message, file=str(folder.path), pid=first.pid, field="image")
    left_out = {example.pid for example in lacking}
    return [example for example in examples if example.pid not in left_out]


def require_splits(folder: ExampleFolder, needed: Sequence[str]) -> None:
    """Raises ExamplesInvalid where one of them has no example."""
    for split in needed:
        if split not in folder.splits:
            has = ", ".join(folder.splits) or "none"
            message = f"{folder.path} has no example of the split {split}, which clients need: it has {has}"
            raise ExamplesInvalid(message, file=str(folder.path), split=split)


def missing_images(example: Example) -> Sequence[Path]:
    return [image for image in example.images if not image.is_file()]


def main_splits(folder: ExampleFolder) -> tuple[str, ...]:
    """train, val and test where the folder has them, for the others (minitrain, trainval) are made of these."""
    return tuple(split for split in MAIN_SPLITS if split in folder.splits) or folder.splits
