"""A folder is there whole or not at all: after errors, full disks, and processes that were killed."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import pytest
import torch
from safetensors.torch import save_file

from fednano.errors import ModelInvalid, PartFailed
from fednano.model.cutting.whole_folder import put_in_place

WRITER = """
import sys, time
from pathlib import Path
from fednano.model.cutting.whole_folder import put_in_place
with put_in_place(Path(sys.argv[1]), sys.argv[2:]) as folder:
    (folder / "half of it").write_text("some")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def somebody_writing(out: Path, *parts: str) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of it; killed at the block's end, if not before."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(out), *parts], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def most_bytes_of_a_file(size: int) -> Iterator[None]:
    """As a full disk is: what is longer cannot be written."""
    before = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        setrlimit(RLIMIT_FSIZE, before)


@pytest.mark.parametrize("parts", [(), ("edge",)])
def test_what_a_killed_process_left_goes_with_the_next_call(tmp_path: Path, parts: tuple[str, ...]) -> None:
    out = tmp_path / "model"
    if parts:
        (out / "server").mkdir(parents=True)
    with somebody_writing(out, *parts) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    home = out if parts else tmp_path
    assert len(list(home.glob(".model.*"))) == 1
    with put_in_place(out, parts) as folder:
        assert [path.name for path in home.glob(".model.*")] == [folder.name]
        for part in parts:
            (folder / part).mkdir()
    assert names(tmp_path) == ["model"]
    assert names(out) == (["edge", "server"] if parts else [])


def test_what_a_living_process_writes_stays_its_own(tmp_path: Path) -> None:
    with somebody_writing(tmp_path / "model"):
        with put_in_place(tmp_path / "model"):
            assert len(list(tmp_path.glob(".model.*"))) == 2
        (left,) = tmp_path.glob(".model.*")
        assert names(left) == ["half of it"]


def test_folders_of_other_names_and_what_is_no_folder_are_not_swept(tmp_path: Path) -> None:
    (tmp_path / ".modelled.0.partial").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".model.1.partial").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".model.2.partial").write_text("mine")
    with put_in_place(tmp_path / "model"):
        pass
    assert names(tmp_path) == [".model.1.partial", ".model.2.partial", ".modelled.0.partial", "elsewhere", "model"]


def test_a_folder_that_is_there_is_written_on_its_own_file_system(tmp_path: Path) -> None:
    """A volume of a container is another file system than the folder that it lies in."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "volume")
    with put_in_place(tmp_path / "out", ["edge"]) as folder:
        assert folder.parent == tmp_path / "volume"
        (folder / "edge").mkdir()
    assert names(tmp_path / "volume") == ["edge"]


def write_plainly(folder: Path) -> None:
    (folder / "large").write_bytes(bytes(1000))


def write_safetensors(folder: Path) -> None:
    save_file({"large": torch.zeros(1000)}, folder / "model.safetensors")


@pytest.mark.parametrize("write", [write_plainly, write_safetensors])
def test_a_full_disk_is_told_as_one_and_leaves_nothing(tmp_path: Path, write: Callable[[Path], None]) -> None:
    def fill() -> None:
        with put_in_place(tmp_path / "model") as folder, most_bytes_of_a_file(100):
            write(folder)

    with pytest.raises(PartFailed, match=r"model cannot be written: .*File too large.*; nothing of it was kept"):
        fill()
    assert names(tmp_path) == []


def test_who_was_quicker_is_not_overwritten(tmp_path: Path) -> None:
    def be_late() -> None:
        with put_in_place(tmp_path / "model") as folder:
            (folder / "mine").touch()
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "theirs").touch()

    with pytest.raises(ModelInvalid, match="is there already"):
        be_late()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["theirs"]


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = open_descriptors()
    for number in range(3):
        with put_in_place(tmp_path / str(number)):
            pass
    assert open_descriptors() == before
