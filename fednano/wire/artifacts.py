"""Safetensors files on the wire: announced by ArtifactSpecs, sent as ArtifactChunks, received whole or not at all.

Several files travel as one stream of bytes, one after the other; a chunk may span two of them.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

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


def file_chunks(paths: Sequence[Path]) -> Iterator[pb.ArtifactChunk]:
    """The files' bytes in chunks of at most 1 MiB, with offsets from 0 over all of them."""
    offset = 0
    for path in paths:
        with path.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                yield pb.ArtifactChunk(offset=offset, data=data)
                offset += len(data)


class ArtifactReceiver:
    """Takes the chunks of announced files; ``finish`` puts them at their targets once every digest is right.

    A context manager: what was not finished is removed at its end.
    """

    def __init__(self, specs: Sequence[pb.ArtifactSpec], targets: Sequence[Path], max_bytes: int) -> None:
        """``max_bytes`` bounds each file. Raises FieldInvalid where a spec is beyond it or makes no sense."""
        for spec in specs:
            _check_spec(spec, max_bytes)
        self._specs, self._targets = list(specs), list(targets)
        self._drafts = [target.with_name(f".{target.name}.part") for target in self._targets]
        self._hashes = [hashlib.sha256() for _ in self._specs]
        self._files: list[BinaryIO] = []
        self._offset, self._index, self._within = 0, 0, 0

    def __enter__(self) -> Self:
        for draft in self._drafts:
            draft.parent.mkdir(parents=True, exist_ok=True)
            self._files.append(draft.open("wb"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        for draft in self._drafts:
            draft.unlink(missing_ok=True)

    def add(self, chunk: pb.ArtifactChunk) -> None:
        """Raises StreamMalformed where the chunk does not follow the last one, or exceeds what was announced."""
        if chunk.offset != self._offset:
            raise StreamMalformed(f"chunk at offset {chunk.offset}, but {self._offset} comes next: send in order")
        if len(chunk.data) > CHUNK_BYTES:
            raise StreamMalformed(f"chunk of {len(chunk.data)} bytes: send at most {CHUNK_BYTES}")
        rest = memoryview(chunk.data)
        while rest:
            self._skip_complete()
            if self._index == len(self._specs):
                raise StreamMalformed(f"{len(rest)} bytes more than announced")
            piece = rest[: self._specs[self._index].size_bytes - self._within]
            self._files[self._index].write(piece)
            self._hashes[self._index].update(piece)
            self._within += len(piece)
            rest = rest[len(piece) :]
        self._offset += len(chunk.data)

    def finish(self) -> list[Path]:
        """Syncs the files to disk and moves them to their targets.

        Raises StreamMalformed where bytes are missing, DigestMismatch where they are not the announced ones.
        """
        total = sum(spec.size_bytes for spec in self._specs)
        if self._offset != total:
            raise StreamMalformed(f"the stream ended after {self._offset} of {total} announced bytes: send it again")
        for spec, digest in zip(self._specs, self._hashes, strict=True):
            _check_digest(spec.sha256, digest.hexdigest())
        for file, draft, target in zip(self._files, self._drafts, self._targets, strict=True):
            file.flush()
            os.fsync(file.fileno())
            draft.replace(target)
        return self._targets

    def _skip_complete(self) -> None:
        while self._index < len(self._specs) and self._within == self._specs[self._index].size_bytes:
            self._index, self._within = self._index + 1, 0


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
