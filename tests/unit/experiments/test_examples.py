"""Examples are made once, and noise reaches training alone."""

import json
from pathlib import Path

import pytest

from experiments.cells import Cell
from experiments.examples import make_examples
from fednano.errors import ExamplesInvalid

SMALL = {"clients": 2, "train_examples": 24, "val_examples": 8, "test_examples": 8}


def answers(folder: Path, split: str) -> list[str]:
    problems = json.loads((folder / "problems.json").read_text())
    return [problem["answer"] for problem in problems.values() if problem["split"] == split]


def test_examples_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    cell = Cell(**SMALL)
    first = make_examples(cell, tmp_path)
    (first / "mark").touch()
    assert make_examples(cell, tmp_path) == first
    assert (first / "mark").exists()


def test_a_noisy_client_trains_on_others_answers_and_is_tested_on_its_own(tmp_path: Path) -> None:
    clean = make_examples(Cell(**SMALL), tmp_path)
    noisy = make_examples(Cell(**SMALL, noisy_clients=1), tmp_path)
    assert answers(noisy / "client-1", "train") != answers(clean / "client-1", "train")
    assert sorted(answers(noisy / "client-1", "train")) == sorted(answers(clean / "client-1", "train"))
    assert answers(noisy / "client-1", "test") == answers(clean / "client-1", "test")
    assert answers(noisy / "client-2", "train") == answers(clean / "client-2", "train")


def test_own_examples_without_the_split_that_is_measured_on_are_refused_by_name(tmp_path: Path) -> None:
    line = {"id": "1", "image": None, "question": "?", "answer": "yes"}
    (tmp_path / "examples.jsonl").write_text(json.dumps(line))
    with pytest.raises(ExamplesInvalid, match="no example of the split val, which clients need: it has train"):
        make_examples(Cell(examples=str(tmp_path), split="val", clients=1), tmp_path / "work")
