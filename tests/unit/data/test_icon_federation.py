from pathlib import Path

import pytest
from PIL import Image

from fednano.data.folder import load_examples
from fednano.data.icon_federation import write_icon_federation
from fednano.errors import ExamplesInvalid

COUNTS = {"train": 160, "val": 48, "test": 80}


def write(out: Path, seed: int = 0) -> list[Path]:
    return write_icon_federation(
        out, client_count=3, alpha=1.0, seed=seed, train_count=160, val_count=48, test_count=80
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_loader_reads_all_that_was_written(tmp_path: Path) -> None:
    folders = write(tmp_path / "clients")
    assert [folder.name for folder in folders] == ["client-1", "client-2", "client-3"]
    for split, count in COUNTS.items():
        examples = [example for folder in folders for example in load_examples(folder, split)]
        assert len(examples) == count
        assert len({example.pid for example in examples}) == count
        with Image.open(examples[0].images[0]) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        write(tmp_path / name, seed)
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first != other


def test_clients_differ_in_their_skills(tmp_path: Path) -> None:
    folders = write(tmp_path / "clients")
    counting = [sum("counting" in e.skills for e in load_examples(folder, "train")) for folder in folders]
    assert max(counting) >= 2 * min(counting)


def test_the_splits_share_no_example(tmp_path: Path) -> None:
    folders = write(tmp_path / "clients")
    pictures = {
        split: {example.images[0].read_bytes() for folder in folders for example in load_examples(folder, split)}
        for split in COUNTS
    }
    assert not pictures["train"] & pictures["test"]
    assert not pictures["val"] & pictures["test"]


def test_folders_that_exist_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "clients")
    before = contents(tmp_path)
    with pytest.raises(ExamplesInvalid, match="client-1 exists already"):
        write(tmp_path / "clients")
    assert contents(tmp_path) == before
