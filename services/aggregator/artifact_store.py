"""A folder of files named by their SHA-256. What is in it is whole and on disk; nothing in it ever changes."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256 as sha256_of
from pathlib import Path

from fednano.errors import ArtifactCorrupt
from fednano.wire.artifacts import file_sha256


class ArtifactStore:
    """Content-addressed files under ``root``/artifacts; drafts under ``root``/tmp."""

    def __init__(self, root: Path) -> None:
        self._files, self._incoming = root / "artifacts", root / "tmp"
        # Drafts of a process that was killed belong to nobody.
        shutil.rmtree(self._incoming, ignore_errors=True)
        for folder in (self._files, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def draft_folder(self) -> Iterator[Path]:
        """An empty folder on the same disk, gone after the block."""
        folder = self._incoming / uuid.uuid4().hex
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def adopt(self, file: Path, sha256: str) -> None:
        """Moves a synced, verified file in; where the same bytes are there already, they stay."""
        target = self._place(sha256)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
        for folder in (target.parent, self._files):
            _sync_folder(folder)

    def put(self, content: bytes) -> str:
        """Stores the bytes and returns their SHA-256."""
        sha256 = sha256_of(content).hexdigest()
        with self.draft_folder() as folder:
            draft = folder / sha256
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self.adopt(draft, sha256)
        return sha256

    def path(self, sha256: str) -> Path:
        """Where the file is. Raises ArtifactCorrupt where it is missing."""
        place = self._place(sha256)
        if not place.is_file():
            raise ArtifactCorrupt(f"artifact {sha256} is missing from {self._files}", sha256=sha256)
        return place

    def verified_path(self, sha256: str) -> Path:
        """As ``path``, after reading the file: raises ArtifactCorrupt where its bytes have changed."""
        place = self.path(sha256)
        found = file_sha256(place)
        if found != sha256:
            raise ArtifactCorrupt(f"artifact {sha256} now has SHA-256 {found}", sha256=sha256, found=found)
        return place

    def _place(self, sha256: str) -> Path:
        return self._files / sha256[:2] / f"{sha256}.safetensors"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
