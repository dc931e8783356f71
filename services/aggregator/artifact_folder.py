"""Artifacts in a local folder: a file is moved in, never copied where it is on the same disk."""

import errno
import os
import shutil
import uuid
from pathlib import Path

from fednano.wire.artifacts import file_sha256
from services.aggregator.disk_faults import disk_faults_named

SUFFIX = ".safetensors"
PART_SUFFIX = ".part"


class LocalFolder:
    """Files {first two digits}/{sha256}.safetensors below ``root``; see ``ArtifactPlace``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with disk_faults_named(root):
            root.mkdir(parents=True, exist_ok=True)
            for part in root.glob(f"*/*{PART_SUFFIX}"):
                part.unlink(missing_ok=True)
            sync_folder(root)

    def adopt(self, file: Path, sha256: str) -> None:
        target = self._target(sha256)
        with disk_faults_named(target):
            if not target.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                sync_folder(self._root)
            if target.is_file() and file_sha256(target) == sha256:
                file.unlink()
            else:
                move(file, target)
            sync_folder(target.parent)

    def path(self, sha256: str) -> Path | None:
        target = self._target(sha256)
        return target if target.is_file() else None

    def size_bytes(self, sha256: str) -> int | None:
        path = self.path(sha256)
        return None if path is None else path.stat().st_size

    def forget(self, sha256: str) -> bool:
        return False

    def delete(self, sha256: str) -> int:
        target = self._target(sha256)
        with disk_faults_named(target):
            try:
                size_bytes = target.stat().st_size
                target.unlink()
            except FileNotFoundError:
                return 0
        return size_bytes

    def __str__(self) -> str:
        return str(self._root)

    def _target(self, sha256: str) -> Path:
        return self._root / sha256[:2] / f"{sha256}{SUFFIX}"


def move(file: Path, target: Path) -> None:
    """Whole or not at all, also from one disk to another."""
    try:
        file.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_across(file, target)


def _move_across(file: Path, target: Path) -> None:
    part = target.with_name(f"{uuid.uuid4().hex}{PART_SUFFIX}")
    try:
        shutil.copyfile(file, part)
        with part.open("rb") as copied:
            os.fsync(copied.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    file.unlink()


def sync_folder(folder: Path) -> None:
    """Makes the names in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
