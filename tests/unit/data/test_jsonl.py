import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fednano.data.folder import load_examples, open_folder
from fednano.data.jsonl import open_jsonl, with_test_split
from fednano.errors import ExamplesInvalid

LINE = {"id": "1", "image": "scans/1.png", "question": "Sound?", "choices": ["yes", "no"], "answer": "yes"}


def write_folder(folder: Path, *lines: dict[str, Any] | str) -> Path:
    (folder / "scans").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "scans" / "1.png")
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "examples.jsonl").write_text("\n".join(texts))
    return folder


def fault_of(folder: Path) -> ExamplesInvalid:
    with pytest.raises(ExamplesInvalid) as caught:
        load_examples(folder, "train")
    return caught.value


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, LINE, "", {**LINE, "id": "2", "topic": "welding", "split": "test", "image": None})
    (first,), (second,) = load_examples(folder, "train"), load_examples(folder, "test")
    assert (first.answer, first.topic, first.skills, first.asks_letter) == ("yes", "", (), False)
    assert (second.topic, second.skills, second.images) == ("welding", ("welding",), ())
    assert open_folder(folder).splits == ("test", "train")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({**LINE, "id": "2", "answer": "maybe"}, "answer"),
        ({**LINE, "id": "2", "answer": 3}, "answer"),
        ({**LINE, "id": "2", "split": "dev"}, "split"),
        ({**LINE, "id": "2", "image": "/etc/passwd"}, "image"),
        ({**LINE, "id": "2", "image": "../1.png"}, "image"),
        ({**LINE, "id": "2", "topik": "welding"}, "topik"),
        ({"id": "2", "image": None, "answer": "yes"}, "question"),
        (LINE, "id"),
        ("{", "the whole line"),
        ("[1]", "the whole line"),
    ],
)
def test_a_wrong_line_names_file_line_and_field(tmp_path: Path, line: dict[str, Any] | str, field: str) -> None:
    fault = fault_of(write_folder(tmp_path, LINE, line))
    assert fault.facts == {"file": str(tmp_path / "examples.jsonl"), "line": "2", "field": field}
    assert fault.message.startswith(f"{tmp_path / 'examples.jsonl'}, line 2: {field} ")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, LINE)
    (folder / "examples.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(LINE).encode() + b"\r\n")
    assert [example.pid for example in load_examples(folder, "train")] == ["1"]


def test_a_fifth_is_kept_for_the_test_split_whatever_the_order_of_the_lines(tmp_path: Path) -> None:
    lines = [{**LINE, "id": str(number)} for number in range(20)]
    (tmp_path / "back").mkdir()
    kept = []
    for folder, ordered in ((tmp_path, lines), (tmp_path / "back", lines[::-1])):
        whole = with_test_split(open_jsonl(write_folder(folder, *ordered)))
        assert (len(whole.read("test")), len(whole.read("train"))) == (4, 16)
        kept.append({example.pid for example in whole.read("test")})
    assert kept[0] == kept[1]


@pytest.mark.parametrize(("count", "least", "kept"), [(20, 6, 6), (8, 6, 4), (2, 1, 1), (1, 1, 0)])
def test_each_client_can_have_one_but_no_more_than_half_are_kept(
    tmp_path: Path, count: int, least: int, kept: int
) -> None:
    folder = open_jsonl(write_folder(tmp_path, *({**LINE, "id": str(number)} for number in range(count))))
    assert sum(line.split == "test" for line in with_test_split(folder, least=least).lines) == kept


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    fault = fault_of(write_folder(tmp_path, {**LINE, "image": "scans/2.png"}))
    assert fault.facts["field"] == "image"
    assert "scans/2.png is no file" in fault.message


def test_a_folder_in_no_known_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExamplesInvalid, match=r"it needs examples\.jsonl"):
        load_examples(tmp_path, "train")
