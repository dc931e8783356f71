"""What the demo makes of a user's own folder, before any process starts."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fednano.cli.demo import prepare
from fednano.cli.options import DemoOptions
from fednano.cli.view import RunView
from fednano.data.folder import load_examples
from fednano.errors import ExamplesInvalid


def own_folder(folder: Path, splits: list[str]) -> Path:
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    lines = [
        {"id": str(number), "image": "1.png", "question": "Sound?", "answer": "yes"}
        | ({"split": split} if split else {})
        for number, split in enumerate(splits)
    ]
    (folder / "examples.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def prepared(tmp_path: Path, splits: list[str]) -> tuple[Path, str]:
    """The clients' folder, and what was said."""
    said = io.StringIO()
    options = DemoOptions(out=tmp_path / "out", clients=3, examples=own_folder(tmp_path / "own", splits))
    prepare(options, RunView(Console(file=said, width=200)))
    return tmp_path / "out" / "examples", said.getvalue()


def test_where_no_line_says_split_some_are_kept_to_measure_on_and_that_is_said(tmp_path: Path) -> None:
    folder, said = prepared(tmp_path, [""] * 20)
    counts = {
        split: sum(len(load_examples(folder / f"client-{number}", split)) for number in (1, 2, 3))
        for split in ("train", "test")
    }
    assert counts == {"train": 16, "test": 4}
    assert "is of the split test: 4 of 20 are kept apart" in said


def test_a_test_split_of_the_users_own_is_taken_as_it_is(tmp_path: Path) -> None:
    folder, said = prepared(tmp_path, ["train"] * 10 + ["test"] * 10)
    assert sum(len(load_examples(folder / f"client-{number}", "test")) for number in (1, 2, 3)) == 10
    assert "kept apart" not in said


def test_a_folder_without_training_examples_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ExamplesInvalid, match="own has no example of the split train, which clients need: it has test"):
        prepared(tmp_path, ["test"] * 10)
