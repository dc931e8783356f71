"""Safetensors files on the wire: announced by ArtifactSpecs, sent as ArtifactChunks, received whole or not at all.

Several files travel as one stream of bytes, one after the other; a chunk may span two of them.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from fednano.errors import DigestMismatch, FieldInvalid, StreamMalformed
from fednano.v1 import artifact_pb2 as pb

CHUNK_BYTES = 1 << 20
SHA256_HEX_LENGTH = 64


def file_sha256(path: Path) -> str:
    """SHA-256 of the file in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def spec_of_file(path: Path, kind: "pb.ArtifactKind.ValueType") -> pb.ArtifactSpec:
    return pb.ArtifactSpec(kind=kind, size_bytes=path.stat().st_size, sha256=file_sha256(path))


def file_chunks(paths: Sequence[Path], start: int = 0) -> Iterator[pb.ArtifactChunk]:
    """The files' bytes from ``start`` on in chunks of at most 1 MiB, with offsets from 0 over all of them."""
    offset = 0
    for path in paths:
        size_bytes = path.stat().st_size
        if offset + size_bytes <= start:
            offset += size_bytes
            continue
        with path.open("rb") as file:
            offset += file.seek(max(0, start - offset))
            while data := file.read(CHUNK_BYTES):
                yield pb.ArtifactChunk(offset=offset, data=data)
                offset += len(data)


class ArtifactFiles:
    """Announced files taking shape on disk, from the start of their stream or from where an earlier one broke."""

    def __init__(self, specs: Sequence[pb.ArtifactSpec], paths: Sequence[Path], max_bytes: int) -> None:
        """``max_bytes`` bounds each file. Raises FieldInvalid where a spec is beyond it or makes no sense."""
        for spec in specs:
            _check_spec(spec, max_bytes)
        self._specs, self._paths = list(specs), list(paths)
        self._hashes = [hashlib.sha256() for _ in self._specs]
        self._files: list[FileIO] = []
        self._offset, self._index, self._within = 0, 0, 0

    @property
    def total_bytes(self) -> int:
        return sum(spec.size_bytes for spec in self._specs)

    @property
    def offset(self) -> int:
        """Bytes of the stream taken so far: where the next chunk begins."""
        return self._offset

    @property
    def is_complete(self) -> bool:
        return self._offset == self.total_bytes

    def received_bytes(self) -> int:
        """How many bytes of the stream an earlier call left on disk, not yet checked."""
        received = 0
        for spec, path in zip(self._specs, self._paths, strict=True):
            size_bytes = path.stat().st_size if path.is_file() else 0
            received += min(size_bytes, spec.size_bytes)
            if size_bytes < spec.size_bytes:
                break
        return received

    def open(self, offset: int = 0) -> None:
        """Goes on at ``offset``, after reading what is there again; what was beyond it is dropped.

        Raises StreamMalformed where fewer bytes are there.
        """
        received = self.received_bytes() if offset else 0
        if not 0 <= offset <= received:
            raise StreamMalformed(f"the stream goes on at {offset}, but {received} bytes are here: ask how many first")
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what was taken outlives the process.
            self._files.append(FileIO(path, "r+" if path.is_file() else "w+"))
        for spec, file, digest in zip(self._specs, self._files, self._hashes, strict=True):
            kept = min(offset - self._offset, spec.size_bytes)
            _hash_start(file, kept, digest)
            file.truncate(kept)
            self._offset += kept
            if kept == spec.size_bytes:
                self._index, self._within = self._index + 1, 0
            elif kept:
                self._within = kept

    def add(self, chunk: pb.ArtifactChunk) -> None:
        """Raises StreamMalformed where the chunk does not follow the last one, or exceeds what was announced."""
        if chunk.offset != self._offset:
            raise StreamMalformed(f"chunk at offset {chunk.offset}, but {self._offset} comes next: send in order")
        if len(chunk.data) > CHUNK_BYTES:
            raise StreamMalformed(f"chunk of {len(chunk.data)} bytes: send at most {CHUNK_BYTES}")
        if len(chunk.data) > self.total_bytes - self._offset:
            excess = len(chunk.data) - (self.total_bytes - self._offset)
            raise StreamMalformed(f"{excess} bytes more than announced")
        rest = memoryview(chunk.data)
        while rest:
            size_bytes = self._specs[self._index].size_bytes
            piece = rest[: size_bytes - self._within]
            _write_all(self._files[self._index], piece)
            self._hashes[self._index].update(piece)
            self._within += len(piece)
            self._offset += len(piece)
            if self._within == size_bytes:
                self._index, self._within = self._index + 1, 0
            rest = rest[len(piece) :]

    def finish(self) -> list[Path]:
        """Syncs the files to disk.

        Raises StreamMalformed where bytes are missing, DigestMismatch where they are not the announced ones.
        """
        if not self.is_complete:
            message = f"the stream ended after {self._offset} of {self.total_bytes} announced bytes: send the rest"
            raise StreamMalformed(message)
        for spec, digest in zip(self._specs, self._hashes, strict=True):
            _check_digest(spec.sha256, digest.hexdigest())
        for file in self._files:
            os.fsync(file.fileno())
        return self._paths

    def close(self) -> None:
        """Lets go of the files; they stay as they are."""
        for file in self._files:
            file.close()


class ArtifactReceiver:
    """Takes the chunks of announced files; ``finish`` puts them at their targets once every digest is right.

    A context manager: what was not finished is removed at its end.
    """

    def __init__(self, specs: Sequence[pb.ArtifactSpec], targets: Sequence[Path], max_bytes: int) -> None:
        """``max_bytes`` bounds each file. Raises FieldInvalid where a spec is beyond it or makes no sense."""
        self._targets = list(targets)
        self._drafts = [target.with_name(f".{target.name}.part") for target in self._targets]
        self._files = ArtifactFiles(specs, self._drafts, max_bytes)

    def __enter__(self) -> Self:
        self._files.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()
        for draft in self._drafts:
            draft.unlink(missing_ok=True)

    def add(self, chunk: pb.ArtifactChunk) -> None:
        """Raises StreamMalformed where the chunk does not follow the last one, or exceeds what was announced."""
        self._files.add(chunk)

    def finish(self) -> list[Path]:
        """Syncs the files to disk and moves them to their targets. Raises as ``ArtifactFiles.finish``."""
        for draft, target in zip(self._files.finish(), self._targets, strict=True):
            draft.replace(target)
        return self._targets


def _hash_start(file: FileIO, size_bytes: int, digest: "hashlib._Hash") -> None:
    """Reads the file's first bytes; it then stands behind them."""
    while size_bytes:
        block = file.read(min(size_bytes, CHUNK_BYTES))
        if not block:
            raise StreamMalformed("a part that was received is gone: send the file again")
        digest.update(block)
        size_bytes -= len(block)


def _write_all(file: FileIO, piece: memoryview) -> None:
    while piece:
        piece = piece[file.write(piece) :]


def _check_spec(spec: pb.ArtifactSpec, max_bytes: int) -> None:
    if not 0 < spec.size_bytes <= max_bytes:
        raise FieldInvalid(
            f"artifact size_bytes is {spec.size_bytes}, but must be 1 to {max_bytes}", field="size_bytes"
        )
    if len(spec.sha256) != SHA256_HEX_LENGTH or set(spec.sha256) - set("0123456789abcdef"):
        raise FieldInvalid("artifact sha256 must be 64 lower-case hex digits", field="sha256")


def _check_digest(announced: str, received: str) -> None:
    if announced != received:
        raise DigestMismatch(
            f"announced SHA-256 {announced}, received {received}: send the file again",
            announced=announced,
            received=received,
        )
