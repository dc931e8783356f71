"""Looking into adapter files."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from fednano.cli.adapter_file import inspect_adapter
from fednano.cli.app import app
from fednano.errors import ModelInvalid


def adapter_file(folder: Path, value: float = 1.0) -> Path:
    path = folder / "adapter.safetensors"
    tensors = {
        "text.down.weight": np.full((2, 8), value, np.float32),
        "text.up.weight": np.zeros((8, 2), np.float32),
    }
    save_file(tensors, path)
    return path


def test_an_adapter_is_known_by_its_digest_rank_and_norm(tmp_path: Path) -> None:
    path = adapter_file(tmp_path)
    found = inspect_adapter(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.ranks, found.parameter_count, found.norm, found.is_finite) == ((2,), 32, 4.0, True)
    assert [(one.name, one.shape, one.data_type) for one in found.tensors] == [
        ("text.down.weight", (2, 8), "F32"),
        ("text.up.weight", (8, 2), "F32"),
    ]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["adapter", "inspect", str(adapter_file(tmp_path, float("nan"))), "--json"])
    facts = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (facts["isFinite"], facts["norm"]) == (False, None)


def test_a_table_names_every_tensor(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["adapter", "inspect", str(adapter_file(tmp_path))])
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if ".weight" in line] == [
        "text.down.weight",
        "text.up.weight",
    ]


def test_another_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("no tensors here, at all")
    with pytest.raises(ModelInvalid, match=r"words.txt is no safetensors file"):
        inspect_adapter(path)
