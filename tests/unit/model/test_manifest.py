import hashlib
import json
from pathlib import Path

import pytest

from fednano.errors import ModelInvalid
from fednano.model.manifest import Manifest, language_digest, read_manifest, write_manifest

MANIFEST = Manifest(model="nano", family="nano", digest="ab" * 32, hidden_size=128, vocab_size=200)


def write_language_half(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_the_digest_is_that_of_settings_and_weights_one_after_the_other(tmp_path: Path) -> None:
    folder = write_language_half(tmp_path / "server")
    assert language_digest(folder) == hashlib.sha256(b"{}weights").hexdigest()


def test_the_digest_ignores_all_other_files_but_no_byte_of_the_weights(tmp_path: Path) -> None:
    first, other = write_language_half(tmp_path / "first"), write_language_half(tmp_path / "other", b"weightz")
    before = language_digest(first)
    write_manifest(MANIFEST, first)
    assert language_digest(first) == before
    assert language_digest(other) != before


def test_a_half_without_weights_has_no_digest(tmp_path: Path) -> None:
    folder = write_language_half(tmp_path / "server")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelInvalid, match=r"model\.safetensors is missing"):
        language_digest(folder)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(MANIFEST, tmp_path)
    assert read_manifest(tmp_path) == MANIFEST


def test_a_missing_manifest_says_which_folder_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match=r"manifest\.json is missing: give the edge/ or server/ folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("change", "field"), [({"hidden_size": "wide"}, "hidden_size"), ({"colour": 1}, "colour")])
def test_a_wrong_manifest_names_the_field(tmp_path: Path, change: dict[str, object], field: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**MANIFEST.model_dump(), **change}))
    with pytest.raises(ModelInvalid) as caught:
        read_manifest(tmp_path)
    assert caught.value.facts["field"] == field


def test_a_manifest_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ModelInvalid, match=r"manifest\.json is no manifest: the file"):
        read_manifest(tmp_path)
