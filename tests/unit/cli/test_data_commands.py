import json
import shutil
from pathlib import Path
from random import Random

import pytest
from PIL import Image
from typer.testing import CliRunner

from fednano.cli.app import app

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
needs_real_files = pytest.mark.skipif(not SHARED.is_dir(), reason="no real excerpts beside this checkout")
runner = CliRunner()


def line(number: int, **fields: object) -> str:
    topic, split = f"topic {number % 3}", ("train", "test")[number // 3 % 2]
    whole = {"id": str(number), "image": None, "question": "Sound?", "answer": "yes", "topic": topic, "split": split}
    return json.dumps({**whole, **fields})


@needs_real_files
def test_the_real_excerpts_are_counted_as_json() -> None:
    result = runner.invoke(app, ["data", "check", str(SHARED / "iconqa" / "iconqa_data"), "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["examples"], found["missingImages"]) == (0, 75, 0)
    assert found["splits"]["test"]["tasks"] == {"choose_img": 25, "choose_txt": 25, "fill_in_blank": 25}
    folder = str(SHARED / "scienceqa")
    found = json.loads(runner.invoke(app, ["data", "check", folder, "--json", "--allow-missing-images"]).stdout)
    assert (found["examples"], found["missingImages"]) == (150, 67)


@needs_real_files
def test_missing_images_are_an_error_unless_allowed() -> None:
    result = runner.invoke(app, ["data", "check", str(SHARED / "scienceqa")])
    assert result.exit_code == 2
    assert "67 images of 67 examples are missing; --allow-missing-images" in result.stderr


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("{", "examples.jsonl, line 2: the whole line is wrong"),
        (line(1, image="gone.png"), "1 images of 1 examples are missing"),
        (line(1, split="dev"), "examples.jsonl, line 2: split must be one of train, val, test"),
    ],
)
def test_what_is_wrong_gives_one_clear_error_and_exit_code_2(tmp_path: Path, broken: str, words: str) -> None:
    (tmp_path / "examples.jsonl").write_text(f"{line(0)}\n{broken}\n")
    result = runner.invoke(app, ["data", "check", str(tmp_path)])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_picture_that_was_cut_short_is_found(tmp_path: Path) -> None:
    noise = Random(0).randbytes(3 * 64 * 64)
    Image.frombytes("RGB", (64, 64), noise).save(tmp_path / "whole.jpg")
    (tmp_path / "short.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    (tmp_path / "examples.jsonl").write_text(f"{line(0, image='whole.jpg')}\n{line(1, image='short.jpg')}\n")
    result = runner.invoke(app, ["data", "check", str(tmp_path)])
    assert result.exit_code == 2
    assert "example 1:" in result.stderr
    assert "short.jpg is no picture that can be read" in result.stderr


def test_a_partition_is_written_shown_and_drawn(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    whole.mkdir()
    (whole / "examples.jsonl").write_text("\n".join(line(number) for number in range(120)))
    arguments = ["data", "partition", str(whole), "--out", str(out), "--clients", "3", "--alpha", "1", "--json"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    clients = json.loads(result.stdout)["clients"]
    assert sum(client["examples"]["train"] + client["examples"]["test"] for client in clients) == 120
    drawn = (out / "topics.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert runner.invoke(app, arguments).exit_code == 2
    shutil.rmtree(out)
    assert runner.invoke(app, arguments).exit_code == 0
    assert (out / "topics.png").read_bytes() == drawn


def test_predictions_are_scored_and_those_that_are_missing_or_of_nothing_are_told(tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text("\n".join(line(number, split="test") for number in range(6)))
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps({"0": "yes", "1": "no", "2": "yes", "99": "yes"}))
    found = json.loads(runner.invoke(app, ["data", "score", str(tmp_path), str(file), "--json"]).stdout)
    assert (found["withoutPrediction"], found["ofNoProblem"]) == (3, 1)
    assert found["scores"]["all"] == {"correct": 2, "count": 6, "accuracy": 2 / 6}
    assert found["scores"]["topic topic 0"]["correct"] == 1
    shown = runner.invoke(app, ["data", "score", str(tmp_path), str(file)])
    assert (shown.exit_code, "33.33%" in shown.stdout) == (0, True)
    assert runner.invoke(app, ["data", "score", str(tmp_path), str(file), "--split", "val"]).exit_code == 2
    file.write_text('{"0": 1}')
    wrong = runner.invoke(app, ["data", "score", str(tmp_path), str(file)])
    assert (wrong.exit_code, "the prediction of 0 must be a text" in wrong.stderr) == (2, True)
