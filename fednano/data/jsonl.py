"""Reads a user's own examples: ``examples.jsonl``, one JSON object a line, and pictures beside it.

    {"id": "1", "image": "scans/1.png", "question": "Is the joint sound?", "choices": ["yes", "no"], "answer": "yes",
     "topic": "welding", "split": "train"}

``choices``, ``topic``, ``hint`` and ``split`` may be left out: a free answer, no topic, no hint, the split train.
``image`` may be null, or a list of pictures. Lines that are empty are passed over.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednano.data.example import Example
from fednano.errors import ExamplesInvalid

EXAMPLES_FILE = "examples.jsonl"
SPLITS = ("train", "val", "test")
# One of so many examples is kept for the split test where no line says which.
TEST_PART = 5


class Line(BaseModel):
    """One line. A field that is not here is a fault, for it is likely a misspelling."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(min_length=1)
    image: str | list[str] | None
    question: str = Field(min_length=1)
    choices: list[str] = []
    answer: str = Field(min_length=1)
    topic: str = ""
    hint: str = ""
    split: str = "train"

    @property
    def images(self) -> list[str]:
        return [self.image] if isinstance(self.image, str) else self.image or []


@dataclass(frozen=True, kw_only=True)
class JsonlFolder:
    """The file's checked lines. The images stay on disk."""

    path: Path
    lines: tuple[Line, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(sorted({line.split for line in self.lines}))

    def read(self, split: str) -> list[Example]:
        """In the order of the file. Whether the images are there is not looked at."""
        if split not in self.splits:
            path = self.path / EXAMPLES_FILE
            message = f"{path} has no line of split {split}: it has {', '.join(self.splits) or 'none'}"
            raise ExamplesInvalid(message, file=str(path), split=split)
        return [_example(self.path, line) for line in self.lines if line.split == split]

    def subset_files(self, pids_of_split: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
        kept = {pid for pids in pids_of_split.values() for pid in pids}
        lines = (line.model_dump_json(exclude_defaults=True) for line in self.lines if line.id in kept)
        return {EXAMPLES_FILE: "".join(f"{line}\n" for line in lines).encode()}


def open_jsonl(folder: Path) -> JsonlFolder:
    """Raises ExamplesInvalid, which names file, line and field, for the first line that is wrong."""
    return JsonlFolder(path=folder, lines=tuple(_lines(folder / EXAMPLES_FILE)))


def with_test_split(folder: JsonlFolder, *, least: int = 1) -> JsonlFolder:
    """The folder with a fifth of its examples, ``least`` or more but no more than half, as its split test.

    Which ones is decided by their ids alone: neither their order nor their number moves one that stays. A folder that
    has a split test already must not be given.
    """
    assert "test" not in folder.splits
    count = min(max(len(folder.lines) // TEST_PART, least), len(folder.lines) // 2)
    ids = sorted((line.id for line in folder.lines), key=lambda each: hashlib.sha256(each.encode()).digest())
    chosen = set(ids[:count])
    lines = (line.model_copy(update={"split": "test"}) if line.id in chosen else line for line in folder.lines)
    return JsonlFolder(path=folder.path, lines=tuple(lines))


def _lines(path: Path) -> Iterator[Line]:
    seen: dict[str, int] = {}
    try:
        # With or without the mark that some editors write first.
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ExamplesInvalid(f"{path} cannot be read as UTF-8 text ({error})", file=str(path)) from error
    # Not splitlines(): a text may hold the line separators of Unicode.
    for number, text in enumerate(content.split("\n"), start=1):
        if not text.strip():
            continue
        line = _line(path, number, text)
        if line.id in seen:
            raise _wrong(path, number, "id", f"is that of line {seen[line.id]} too: each example needs its own")
        seen[line.id] = number
        yield line


def _line(path: Path, number: int, text: str) -> Line:
    try:
        line = Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "the whole line"
        raise _wrong(path, number, field, f"is wrong: {first['msg']}") from None
    if line.choices and line.answer not in line.choices:
        raise _wrong(path, number, "answer", f"is none of the {len(line.choices)} choices")
    if line.split not in SPLITS:
        raise _wrong(path, number, "split", f"must be one of {', '.join(SPLITS)}")
    for image in line.images:
        relative = PurePosixPath(image)
        if not image or relative.is_absolute() or ".." in relative.parts:
            raise _wrong(path, number, "image", "must be a path inside the folder")
    return line


def _example(folder: Path, line: Line) -> Example:
    return Example(
        pid=line.id,
        images=tuple(folder / image for image in line.images),
        question=line.question,
        choices=tuple(line.choices),
        answer=line.answer,
        hint=line.hint,
        topic=line.topic,
        skills=(line.topic,) if line.topic else (),
    )


def _wrong(path: Path, number: int, field: str, fault: str) -> ExamplesInvalid:
    return ExamplesInvalid(f"{path}, line {number}: {field} {fault}", file=str(path), line=str(number), field=field)
