import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fednano.errors import ModelInvalid
from fednano.model.manifest import language_digest, read_manifest, write_manifest
from fednano.model.parts import load_edge, resolve_model


@pytest.fixture
def edge_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_model("nano") / "edge", tmp_path / "edge"))


def test_the_preset_is_found_by_its_name_and_a_model_by_its_folder(tmp_path: Path) -> None:
    assert (resolve_model("nano") / "edge" / "manifest.json").is_file()
    assert resolve_model(str(tmp_path)) == tmp_path


def test_an_unknown_model_names_the_presets() -> None:
    with pytest.raises(ModelInvalid, match=r"neither a preset \(nano, smol\) nor a folder"):
        resolve_model("giga")


def test_all_parts_are_frozen_float32_and_in_eval_mode() -> None:
    parts = load_edge(resolve_model("nano") / "edge")
    assert parts.head is not None
    for module in (parts.vision_encoder, parts.connector, parts.token_embedding, parts.head):
        assert not any(each.training for each in module.modules())
        assert {(p.dtype, p.requires_grad) for p in module.parameters()} == {(torch.float32, False)}


def test_both_halves_name_the_digest_of_the_language_half() -> None:
    model = resolve_model("nano")
    digest = language_digest(model / "server")
    assert read_manifest(model / "edge").digest == read_manifest(model / "server").digest == digest


def test_a_whole_model_is_refused_with_the_half_to_give() -> None:
    with pytest.raises(ModelInvalid, match=r"is a whole model: give its edge half, .*edge"):
        load_edge(resolve_model("nano"))


def test_an_unknown_family_names_the_known_ones(edge_copy: Path) -> None:
    write_manifest(read_manifest(edge_copy).model_copy(update={"family": "giga"}), edge_copy)
    with pytest.raises(ModelInvalid, match=r"the family giga, which is not one of: .*nano"):
        load_edge(edge_copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(edge_copy: Path, name: str) -> None:
    (edge_copy / name).unlink()
    with pytest.raises(ModelInvalid, match=f"{name} is missing") as caught:
        load_edge(edge_copy)
    assert caught.value.facts["file"] == str(edge_copy / name)


def test_weights_cut_short_are_refused(edge_copy: Path) -> None:
    weights = edge_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelInvalid, match=r"model\.safetensors is missing or does not fit"):
        load_edge(edge_copy)


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size"])
def test_a_manifest_of_another_size_is_refused(edge_copy: Path, name: str) -> None:
    manifest = read_manifest(edge_copy)
    write_manifest(manifest.model_copy(update={name: 7}), edge_copy)
    with pytest.raises(ModelInvalid, match="they are of two models"):
        load_edge(edge_copy)


def test_loading_the_edge_half_never_imports_transformers() -> None:
    code = (
        "import sys; from fednano.model.parts import load_edge, resolve_model;"
        "load_edge(resolve_model('nano') / 'edge'); sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
