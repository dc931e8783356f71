"""Updates that are still coming in: files under state/incoming that outlive a broken connection and this process.

state/incoming/{run}/{round}/{client}/{digest}/ holds the part of one update that has arrived; the digest is that of
what the update's header announced, so that only the same bytes go on. There is at most one for a round and client.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from fednano.names import ClientName, RoundName
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1.artifact_pb2 import ArtifactChunk
from fednano.wire.artifacts import ArtifactFiles
from services.aggregator.disk_faults import disk_faults_named

INCOMING = "incoming"


class UploadDraft:
    """One update on its way in. Blocking, and for one caller at a time. A disk that fails is a WireError."""

    def __init__(
        self, state: Path, name: RoundName, client: ClientName, header: pb.UpdateHeader, max_bytes: int
    ) -> None:
        """Writes nothing yet. Raises FieldInvalid where a file is announced with more than ``max_bytes`` bytes."""
        self._client_folder = _round_folder(state, name) / client.client
        self._folder = self._client_folder / _digest(header)
        paths = [self._folder / f"{index}.part" for index in range(len(header.artifacts))]
        self._files = ArtifactFiles(header.artifacts, paths, max_bytes)

    def received_bytes(self) -> int:
        return self._files.received_bytes()

    @property
    def is_complete(self) -> bool:
        return self._files.is_complete

    def open(self, offset: int) -> None:
        """Goes on at ``offset``, 0 starts anew; what the client announced otherwise for the round is dropped.

        Raises StreamMalformed where less than that is here.
        """
        with disk_faults_named(self._folder):
            if self._client_folder.is_dir():
                for other in self._client_folder.iterdir():
                    if other != self._folder:
                        shutil.rmtree(other, ignore_errors=True)
            self._files.open(offset)

    def add(self, chunk: ArtifactChunk) -> None:
        with disk_faults_named(self._folder):
            self._files.add(chunk)

    def finish(self) -> list[Path]:
        """The files, synced and with the announced digests. Raises StreamMalformed or DigestMismatch."""
        with disk_faults_named(self._folder):
            return self._files.finish()

    def close(self) -> None:
        """What has arrived stays, for the next call to go on from."""
        self._files.close()

    def drop(self) -> None:
        """Closes, and removes all that has arrived. Idempotent."""
        self._files.close()
        shutil.rmtree(self._client_folder, ignore_errors=True)


def clear_drafts(state: Path, name: RoundName) -> None:
    """Drops whatever has arrived of updates for the round, which takes no more. Idempotent."""
    shutil.rmtree(_round_folder(state, name), ignore_errors=True)


def clear_stale_drafts(state: Path, is_open: Callable[[RoundName], bool]) -> None:
    """Drops all drafts but those of rounds that still take updates; for the start of the process."""
    for folder in sorted((state / INCOMING).glob("*/*")):
        run, number = folder.parent.name, folder.name
        if not number.isdecimal() or not is_open(RoundName(run=run, number=int(number))):
            shutil.rmtree(folder, ignore_errors=True)


def _round_folder(state: Path, name: RoundName) -> Path:
    return state / INCOMING / name.run / str(name.number)


def _digest(header: pb.UpdateHeader) -> str:
    words = [f"{spec.kind} {spec.size_bytes} {spec.sha256}" for spec in header.artifacts]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
