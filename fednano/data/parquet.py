"""Takes in Parquet files as the Hugging Face ``datasets`` library writes them, as a folder with ``examples.jsonl``.

Columns: ``question`` and ``answer``, which is a text or an index into ``choices``; and, where they are there,
``image``, ``choices``, ``hint``, ``topic`` and ``id``. Others are passed over.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Image as ImageColumn
from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError

from fednano.data.jsonl import EXAMPLES_FILE, SPLITS
from fednano.errors import ExamplesInvalid

NEEDED = ("question", "answer")


def import_parquet(source: Path, out: Path) -> dict[str, int]:
    """Writes ``out``, all or nothing; how many examples of each split it has.

    A file belongs to the split that its name begins with (train, val or validation, test), and to train otherwise.
    """
    if out.exists():
        raise ExamplesInvalid(f"{out} exists already: remove it or write elsewhere", folder=str(out))
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        counts = _write(_files_of_split(source), draft)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return counts


def _write(files_of_split: Mapping[str, list[Path]], folder: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    with (folder / EXAMPLES_FILE).open("w", encoding="utf-8") as lines:
        for split, files in files_of_split.items():
            for line in _lines(split, files, folder):
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                counts[split] = counts.get(split, 0) + 1
    return counts


def _files_of_split(source: Path) -> dict[str, list[Path]]:
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise ExamplesInvalid(f"{source} has no Parquet file: give one, or a folder with some", file=str(source))
    found: dict[str, list[Path]] = {}
    for file in files:
        split = next((split for split in SPLITS if file.name.startswith(split)), "train")
        found.setdefault(split, []).append(file)
    return found


def _lines(split: str, files: list[Path], folder: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = load_dataset(
            "parquet", data_files=[str(file) for file in files], split="train", cache_dir=str(folder / ".cache")
        )
    # pyarrow tells of a file that is none by a ValueError.
    except (DatasetGenerationError, ValueError) as error:
        names = ", ".join(str(file) for file in files)
        raise ExamplesInvalid(f"no Parquet can be read from {names}: {error.__cause__ or error}") from None
    missing = [column for column in NEEDED if column not in rows.column_names]
    if missing:
        raise ExamplesInvalid(f"{files[0]} has no column {missing[0]}: it has {', '.join(rows.column_names)}")
    if "image" in rows.column_names:
        rows = rows.cast_column("image", ImageColumn(decode=False))
    for number, row in enumerate(rows, start=1):
        yield _line(split, number, row, folder)
    shutil.rmtree(folder / ".cache")


def _line(split: str, number: int, row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    for field in NEEDED:
        if row[field] is None:
            raise ExamplesInvalid(f"row {number} of {split}: {field} is missing", field=field)
    choices, answer = list(row.get("choices") or []), row["answer"]
    if isinstance(answer, int) and choices:
        if not 0 <= answer < len(choices):
            message = f"row {number} of {split}: answer must be an index into the {len(choices)} choices"
            raise ExamplesInvalid(message, field="answer")
        answer = choices[answer]
    name = str(row.get("id") or f"{split}-{number}")
    line = {"id": name, "image": _write_image(row.get("image"), folder, f"images/{split}/{number}.png")}
    line |= {"question": row["question"], "answer": str(answer), "split": split}
    optional = {"choices": choices, "hint": row.get("hint"), "topic": row.get("topic")}
    return {**line, **{key: value for key, value in optional.items() if value}}


def _write_image(cell: Mapping[str, Any] | None, folder: Path, name: str) -> str | None:
    """The picture's bytes as they are, whatever their format: readers go by content, not by name."""
    if cell is None:
        return None
    content = cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return name
