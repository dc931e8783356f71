import json
from pathlib import Path

import pytest
from PIL import Image

from fednano.data.client_folders import ClientFolder, write_client_folders
from fednano.data.folder import load_examples, open_folder
from fednano.data.icon_federation import write_icon_federation
from fednano.errors import ExamplesInvalid

TOPICS = ("welding", "casting", "paint")
SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def own_folder(folder: Path) -> Path:
    (folder / "scans").mkdir(parents=True)
    lines = []
    for i in range(240):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / "scans" / f"{i}.png")
        split = ("train", "train", "test")[i // 3 % 3]
        line = {"id": str(i), "image": f"scans/{i}.png", "question": "Sound?", "answer": "yes"}
        lines.append(json.dumps({**line, "topic": TOPICS[i % 3], "split": split}))
    (folder / "examples.jsonl").write_text("\n".join(lines))
    return folder


def write(folder: Path, out: Path, *, seed: int = 0, alpha: float = 0.5, allow: bool = False) -> list[ClientFolder]:
    return write_client_folders(
        open_folder(folder),
        out,
        client_count=3,
        alpha=alpha,
        seed=seed,
        minimum_share=0.2,
        allow_missing_images=allow,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_each_example_goes_to_one_client_with_its_picture(tmp_path: Path) -> None:
    whole = own_folder(tmp_path / "whole")
    clients = write(whole, tmp_path / "out")
    for split in ("train", "test"):
        parts = [load_examples(client.path, split) for client in clients]
        got = sorted(example.pid for part in parts for example in part)
        assert got == sorted(example.pid for example in load_examples(whole, split))
        assert [len(part) for part in parts] == [client.examples[split] for client in clients]
        for example in parts[0]:
            assert example.images[0].read_bytes() == (whole / "scans" / f"{example.pid}.png").read_bytes()
            assert example.images[0].is_relative_to(clients[0].path)


def test_a_client_has_the_same_part_of_a_topic_in_each_split(tmp_path: Path) -> None:
    clients = write(own_folder(tmp_path / "whole"), tmp_path / "out")
    for client in clients:
        counts = {
            split: [sum(e.topic == topic for e in load_examples(client.path, split)) for topic in TOPICS]
            for split in ("train", "test")
        }
        for train, test in zip(counts["train"], counts["test"], strict=True):
            assert abs(train / 2 - test) <= 2


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    whole = own_folder(tmp_path / "whole")
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        write(whole, tmp_path / name, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first != other


def test_the_official_layouts_stay_as_they_are(tmp_path: Path) -> None:
    (icons,) = write_icon_federation(
        tmp_path / "icons", client_count=1, alpha=1.0, seed=0, train_count=80, val_count=32
    )
    clients = write(icons, tmp_path / "out")
    assert {file.name for file in clients[0].path.iterdir()} == {
        "problems.json", "pid_splits.json", "pid2skills.json", "iconqa",
    }  # fmt: skip
    assert sum(len(load_examples(client.path, "val")) for client in clients) == 32


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    whole = own_folder(tmp_path / "whole")
    write(whole, tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(ExamplesInvalid, match="exists already"):
        write(whole, tmp_path / "out", seed=2)
    assert contents(tmp_path) == before


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real excerpts beside this checkout")
def test_real_scienceqa_is_split_without_the_examples_whose_images_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ExamplesInvalid, match="lack an image"):
        write(SHARED / "scienceqa", tmp_path / "out", alpha=10.0)
    clients = write(SHARED / "scienceqa", tmp_path / "out", alpha=10.0, allow=True)
    assert sum(sum(client.examples.values()) for client in clients) == 150 - 67
