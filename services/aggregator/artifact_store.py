"""Artifacts: files named by their SHA-256. What is in the store is whole and durable, and never changes until it is
deleted."""

import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Protocol

from fednano.errors import ArtifactCorrupt
from fednano.wire.artifacts import file_sha256
from services.aggregator.artifact_folder import LocalFolder
from services.aggregator.artifact_holds import ArtifactHolds
from services.aggregator.disk_faults import disk_faults_named


class ArtifactPlace(Protocol):
    """Where the files are. Every call may raise StorageFull or StoreUnavailable."""

    def adopt(self, file: Path, sha256: str) -> None:
        """Takes the file, durably; one that is there already with these bytes stays as it is."""

    def path(self, sha256: str) -> Path | None:
        """A local file that is to have these bytes, or None where the place has none."""

    def size_bytes(self, sha256: str) -> int | None: ...

    def forget(self, sha256: str) -> bool:
        """Drops a copy whose bytes have changed; False where the file itself has."""

    def delete(self, sha256: str) -> int:
        """How many bytes that gave back: 0 where the place has no such file."""

    def __str__(self) -> str:
        """For people, without passwords."""


class ArtifactStore:
    """Any thread may call it; all calls block. Drafts are under ``state``/tmp, gone after a restart."""

    def __init__(self, state: Path, place: ArtifactPlace | None = None) -> None:
        """The files are in ``state``/artifacts, unless another place is given."""
        self._drafts = state / "tmp"
        with disk_faults_named(state):
            # Drafts of a process that was killed belong to nobody.
            shutil.rmtree(self._drafts, ignore_errors=True)
            self._drafts.mkdir(parents=True, exist_ok=True)
        self._place = LocalFolder(state / "artifacts") if place is None else place
        self._holds = ArtifactHolds()

    @contextmanager
    def draft_folder(self) -> Iterator[Path]:
        """An empty folder, gone after the block."""
        folder = self._drafts / uuid.uuid4().hex
        with disk_faults_named(folder):
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def adopt(self, file: Path, sha256: str) -> None:
        """Takes over a synced, verified file: when this returns it is durable. The file itself is gone then."""
        self._place.adopt(file, sha256)

    def put(self, content: bytes) -> str:
        """Stores the bytes, durably, and returns their SHA-256. They are not deleted before the next start."""
        sha256 = sha256_of(content).hexdigest()
        self._holds.keep(sha256)
        with self.draft_folder() as folder:
            draft = folder / sha256
            with disk_faults_named(draft), draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self.adopt(draft, sha256)
        return sha256

    @contextmanager
    def naming(self, sha256s: Collection[str]) -> Iterator[None]:
        """What the block adopts of these, and names in the database, is not deleted in between."""
        with self._holds.holding(sha256s):
            yield

    def delete(self, sha256s: Sequence[str], find_needed: Callable[[], Collection[str]]) -> int:
        """Deletes those that nobody is naming and ``find_needed`` does not find needed; returns their bytes."""
        with self._holds.condemning(sha256s) as free:
            needed = find_needed()
            return sum(self._place.delete(sha256) for sha256 in free if sha256 not in needed)

    def path(self, sha256: str) -> Path:
        """A local file, not read. Raises ArtifactCorrupt where the artifact is missing."""
        path = self._place.path(sha256)
        if path is None:
            raise self._missing(sha256)
        return path

    def size_bytes(self, sha256: str) -> int:
        """Raises ArtifactCorrupt where the artifact is missing."""
        size_bytes = self._place.size_bytes(sha256)
        if size_bytes is None:
            raise self._missing(sha256)
        return size_bytes

    def verified_path(self, sha256: str) -> Path:
        """As ``path``, after reading the file: raises ArtifactCorrupt where its bytes have changed.

        Of a remote place it is a copy that stays for at least ten minutes.
        """
        path = self.path(sha256)
        found = self._digest(path)
        if found != sha256 and self._place.forget(sha256):
            path = self.path(sha256)
            found = self._digest(path)
        if found != sha256:
            raise ArtifactCorrupt(
                f"artifact {sha256} in {self._place} now has SHA-256 {found}: restore it from a backup",
                sha256=sha256,
                found=found,
            )
        return path

    def _digest(self, path: Path) -> str:
        with disk_faults_named(path):
            return file_sha256(path)

    def _missing(self, sha256: str) -> ArtifactCorrupt:
        return ArtifactCorrupt(
            f"artifact {sha256} is missing from {self._place}: restore it from a backup", sha256=sha256
        )
