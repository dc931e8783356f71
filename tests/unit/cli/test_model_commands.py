"""`fednano model`: what it prints, and how it ends."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_families import llava
from typer.testing import CliRunner, Result

from fednano.cli.app import app
from fednano.model.manifest import read_manifest


def model(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["model", *map(str, words)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "llava"
    llava().save(folder)
    return folder


def test_split_writes_both_halves_and_says_what_they_are(checkpoint: Path, tmp_path: Path) -> None:
    done = model("split", checkpoint, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["digest"] == read_manifest(tmp_path / "out" / "edge").digest
    assert (found["family"], found["hiddenSize"], found["dtype"]) == ("llava", 32, "float32")
    weights = {half: (tmp_path / "out" / half / "model.safetensors").stat().st_size for half in ("edge", "server")}
    assert all(0 < found[f"{half}Bytes"] < size for half, size in weights.items())


def test_one_half_is_written_alone(checkpoint: Path, tmp_path: Path) -> None:
    done = model("split", checkpoint, "--out", tmp_path / "out", "--only", "edge")
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["edge"]
    assert "server" not in done.stdout


@pytest.mark.parametrize("name", ["nowhere", "./no/folder"])
def test_what_is_no_model_ends_with_one_line(name: str, tmp_path: Path) -> None:
    done = model("split", name, "--out", tmp_path / "out")
    assert done.exit_code != 0
    assert "is no folder, nor the id of a repository" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_checkpoint_that_lacks_a_tensor_ends_with_one_line_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    done = model("split", copy, "--out", tmp_path / "out")
    assert done.exit_code != 0
    assert "model.safetensors is missing" in done.stderr
    assert not (tmp_path / "out").exists()
