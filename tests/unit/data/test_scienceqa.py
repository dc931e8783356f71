import json
from pathlib import Path
from typing import Any

import pytest

from fednano.data.folder import load_examples, missing_images, open_folder
from fednano.data.scienceqa import open_scienceqa, read_problems
from fednano.errors import ExamplesInvalid
from fednano.prompt import cqm_a

REAL_FOLDER = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "scienceqa"
needs_real_files = pytest.mark.skipif(not REAL_FOLDER.is_dir(), reason="no real excerpt of ScienceQA here")

RECORD = {
    "question": "Which?", "choices": ["one", "two"], "answer": 1, "hint": "", "image": None, "grade": "grade3",
    "subject": "natural science", "topic": "physics", "split": "train", "lecture": "", "skill": "s",
}  # fmt: skip


def write_folder(folder: Path, **fields: Any) -> Path:
    (folder / "problems.json").write_text(json.dumps({"5": {**RECORD, **fields}}))
    (folder / "pid_splits.json").write_text(json.dumps({"train": ["5"]}))
    return folder


def test_the_answer_is_the_letter_of_the_choice(tmp_path: Path) -> None:
    (example,) = load_examples(write_folder(tmp_path), "train")
    assert (example.answer, example.asks_letter, example.images, example.topic) == ("B", True, (), "physics")


def test_the_prompt_is_llava_s_cqm_a(tmp_path: Path) -> None:
    (plain,) = open_folder(write_folder(tmp_path)).read("train")
    letters = "A. one\nB. two\nAnswer with the option's letter from the given choices directly."
    assert cqm_a(plain.prompt) == f"Which?\n{letters}"
    (whole,) = open_folder(write_folder(tmp_path, hint="Look.", image="image.png")).read("train")
    assert cqm_a(whole.prompt) == f"<image>\nContext: Look.\nWhich?\n{letters}"


def test_an_image_that_is_not_there_is_named_or_its_example_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, image="image.png")
    with pytest.raises(ExamplesInvalid, match=r"1 of 1 train examples lack an image.*images/train/5/image.png"):
        load_examples(folder, "train")
    assert load_examples(folder, "train", allow_missing_images=True) == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"answer": 2}, "answer"),
        ({"answer": "1"}, "answer"),
        ({"image": "../image.png"}, "image"),
        ({"grade": "grade13"}, "grade"),
        ({"subject": "magic"}, "subject"),
        ({"split": "dev"}, "split"),
        ({"split": "../train"}, "split"),
        ({"choices": "ab"}, "choices"),
    ],
)
def test_a_wrong_field_is_named_with_its_problem(tmp_path: Path, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ExamplesInvalid) as caught:
        load_examples(write_folder(tmp_path, **fields), "train")
    assert (caught.value.facts["pid"], caught.value.facts["field"]) == ("5", field)


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ExamplesInvalid, match="no split test: it has train"):
        load_examples(write_folder(tmp_path), "test")


def test_a_list_of_no_known_split_is_refused_for_nobody_would_read_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "pid_splits.json").write_text(json.dumps({"train": ["5"], "tset": ["5"]}))
    with pytest.raises(ExamplesInvalid, match="tset is no split: it must be one of train, val, test,") as caught:
        open_folder(folder)
    assert caught.value.facts == {"file": str(folder / "pid_splits.json"), "split": "tset"}


def test_a_pid_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "problems.json").write_text(json.dumps({"../5": {**RECORD, "image": "image.png"}}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["../5"]}))
    with pytest.raises(ExamplesInvalid) as caught:
        open_folder(tmp_path).read("train")
    assert caught.value.facts["field"] == "pid"


@needs_real_files
def test_all_the_real_records_are_read() -> None:
    opened = open_scienceqa(REAL_FOLDER)
    assert {split: len(read_problems(opened, split)) for split in opened.splits} == {"train": 50, "val": 50, "test": 50}
    examples = [example for split in opened.splits for example in opened.read(split)]
    assert sum(bool(missing_images(example)) for example in examples) == 67
    assert all(example.answer in "ABCDE"[: len(example.choices)] for example in examples)
