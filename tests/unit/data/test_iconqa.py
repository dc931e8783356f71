import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fednano.data.folder import load_examples
from fednano.data.iconqa import TASKS, open_iconqa, read_iconqa, read_problems
from fednano.errors import ExamplesInvalid

REAL_FOLDER = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "iconqa" / "iconqa_data"
needs_real_files = pytest.mark.skipif(not REAL_FOLDER.is_dir(), reason="no real excerpt of IconQA beside this checkout")

FREE = {"question": "How many?", "answer": "3", "ques_type": "fill_in_blank", "split": "train"}
CHOSEN = {"question": "Which?", "answer": 1, "choices": ["a", "b"], "ques_type": "choose_txt", "split": "train"}
IMAGES = {**CHOSEN, "choices": ["choice_0.png", "choice_1.png"], "ques_type": "choose_img"}


def write_folder(folder: Path, records: dict[str, dict[str, Any]]) -> Path:
    splits: dict[str, list[str]] = {f"{task}_train": [] for task in TASKS}
    for pid, record in records.items():
        splits[f"{record['ques_type']}_train"].append(pid)
        own = folder / "iconqa" / "train" / record["ques_type"] / pid
        own.mkdir(parents=True)
        for name in ("image.png", "choice_0.png", "choice_1.png"):
            Image.new("RGB", (8, 8)).save(own / name)
    (folder / "problems.json").write_text(json.dumps(records))
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    (folder / "pid2skills.json").write_text(json.dumps({pid: ["counting"] for pid in records}))
    return folder


def fault_of(folder: Path, tasks: list[str] | None = None) -> ExamplesInvalid:
    with pytest.raises(ExamplesInvalid) as caught:
        load_examples(folder, "train") if tasks is None else read_iconqa(open_iconqa(folder), "train", tasks)
    return caught.value


def test_free_and_chosen_answers_become_texts(tmp_path: Path) -> None:
    free, chosen = load_examples(write_folder(tmp_path, {"7": FREE, "9": CHOSEN}), "train")
    assert (free.pid, free.answer, free.choices, free.skills) == ("7", "3", (), ("counting",))
    assert (chosen.pid, chosen.answer, chosen.choices) == ("9", "b", ("a", "b"))
    assert free.images[0].is_file()


def test_choices_that_are_pictures_follow_the_question_s_own_and_are_chosen_by_letter(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"7": FREE, "9": IMAGES})
    pictured = load_examples(folder, "train")[1]
    assert [image.name for image in pictured.images] == ["image.png", "choice_0.png", "choice_1.png"]
    assert (pictured.choices, pictured.answer, pictured.asks_letter) == (("", ""), "B", True)
    assert pictured.prompt.image_count == 3


def test_a_picture_of_a_choice_lies_in_the_problem_s_own_folder(tmp_path: Path) -> None:
    fault = fault_of(write_folder(tmp_path, {"9": {**IMAGES, "choices": ["../8/image.png", "choice_1.png"]}}))
    assert fault.facts["field"] == "choices"


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({**FREE, "answer": 3}, "answer"),
        ({**CHOSEN, "answer": 2}, "answer"),
        ({**CHOSEN, "answer": -1}, "answer"),
        ({**CHOSEN, "answer": "b"}, "answer"),
        ({**CHOSEN, "choices": "ab"}, "choices"),
        ({**FREE, "question": None}, "question"),
        ({**FREE, "split": "dev"}, "split"),
        ({name: value for name, value in FREE.items() if name != "question"}, "question"),
    ],
)
def test_a_wrong_record_names_file_pid_and_field(tmp_path: Path, record: dict[str, Any], field: str) -> None:
    folder = write_folder(tmp_path, {"7": FREE, "41": record})
    fault = fault_of(folder)
    assert fault.facts == {"file": str(folder / "problems.json"), "pid": "41", "field": field}
    assert all(fact in fault.message for fact in fault.facts.values())


def test_a_record_of_another_task_than_the_split_says_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"7": FREE})
    (folder / "pid_splits.json").write_text(json.dumps({"choose_txt_train": ["7"]}))
    assert fault_of(folder).facts["field"] == "ques_type"


def test_a_pid_without_a_record_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"7": FREE})
    (folder / "problems.json").write_text("{}")
    assert fault_of(folder).facts["pid"] == "7"


@pytest.mark.parametrize("name", ["choose_imgs_train", "choose_img_dev", "train"])
def test_a_list_of_no_known_task_and_split_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path, {"7": FREE})
    (folder / "pid_splits.json").write_text(json.dumps({"fill_in_blank_train": ["7"], name: []}))
    assert fault_of(folder).facts == {"file": str(folder / "pid_splits.json"), "split": name}


def test_a_pid_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"7": FREE, "../8": FREE})
    assert fault_of(folder).facts["field"] == "pid"


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"7": FREE})
    (folder / "iconqa" / "train" / "fill_in_blank" / "7" / "image.png").unlink()
    assert fault_of(folder).facts["field"] == "image"


def test_a_missing_skill_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"7": FREE})
    (folder / "pid2skills.json").write_text("{}")
    fault = fault_of(folder)
    assert (fault.facts["file"], fault.facts["field"]) == (str(folder / "pid2skills.json"), "skills")


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"7": FREE})
    with pytest.raises(ExamplesInvalid, match=r"no list fill_in_blank_test: it has .*fill_in_blank_train"):
        load_examples(folder, "test")


def test_an_unknown_task_names_the_known_ones(tmp_path: Path) -> None:
    fault = fault_of(write_folder(tmp_path, {"7": FREE}), tasks=["choose_sound"])
    assert "fill_in_blank, choose_txt, choose_img" in fault.message


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path, {"7": FREE})
    (folder / "problems.json").write_text(content)
    assert fault_of(folder).facts["file"] == str(folder / "problems.json")


@needs_real_files
@pytest.mark.parametrize("task", TASKS)
def test_the_real_records_of_every_task_are_read(task: str) -> None:
    assert len(read_problems(open_iconqa(REAL_FOLDER), "test", task)) == 25


@needs_real_files
def test_the_real_examples_have_texts_images_and_skills() -> None:
    examples = read_iconqa(open_iconqa(REAL_FOLDER), "test", ["fill_in_blank", "choose_txt"])
    assert len(examples) == 50
    assert all(example.answer and example.question and example.skills for example in examples)
    assert all(example.answer in example.choices for example in examples[25:])
    assert next(example for example in examples if example.pid == "20").answer == "7,364"
    with Image.open(examples[0].images[0]) as image:
        assert image.size[0] > 0


@needs_real_files
def test_the_real_choices_that_are_pictures_are_all_there() -> None:
    examples = read_iconqa(open_iconqa(REAL_FOLDER), "test", ["choose_img"])
    assert len(examples) == 25
    assert all(len(each.images) == len(each.choices) + 1 for each in examples)
    assert load_examples(REAL_FOLDER, "test")[50:] == examples
