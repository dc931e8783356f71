"""Files that arrive in chunks: whole, in several goes, and not as announced."""

import hashlib
from pathlib import Path

import pytest

from fednano.errors import DigestMismatch, FieldInvalid, StreamMalformed
from fednano.v1 import artifact_pb2 as pb
from fednano.wire.artifacts import CHUNK_BYTES, ArtifactFiles, ArtifactReceiver, file_chunks, spec_of_file

KIND = pb.ARTIFACT_KIND_ADAPTER
# Two files, the second one longer than a chunk.
CONTENTS = (b"one" * 100, bytes(range(256)) * 5000)
TOTAL = sum(map(len, CONTENTS))


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "source-0", tmp_path / "source-1"]
    for path, content in zip(paths, CONTENTS, strict=True):
        path.write_bytes(content)
    return paths


def specs_of(sources: list[Path]) -> list[pb.ArtifactSpec]:
    return [spec_of_file(path, KIND) for path in sources]


def arriving(sources: list[Path], folder: Path) -> ArtifactFiles:
    return ArtifactFiles(specs_of(sources), [folder / "parts" / "0", folder / "parts" / "1"], 1 << 21)


def chunk_of(chunk: pb.ArtifactChunk, size_bytes: int) -> pb.ArtifactChunk:
    return pb.ArtifactChunk(offset=chunk.offset, data=chunk.data[:size_bytes])


def test_a_receiver_puts_whole_files_at_their_targets_and_leaves_nothing_else(
    tmp_path: Path, sources: list[Path]
) -> None:
    targets = [tmp_path / "in" / "a", tmp_path / "in" / "b"]
    with ArtifactReceiver(specs_of(sources), targets, 1 << 21) as receiver:
        for chunk in file_chunks(sources):
            receiver.add(chunk)
        receiver.finish()
    assert tuple(target.read_bytes() for target in targets) == CONTENTS
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a", "b"]


def test_a_receiver_that_is_broken_off_leaves_nothing(tmp_path: Path, sources: list[Path]) -> None:
    with ArtifactReceiver(specs_of(sources), [tmp_path / "in" / "a", tmp_path / "in" / "b"], 1 << 21) as receiver:
        receiver.add(next(file_chunks(sources)))
        with pytest.raises(StreamMalformed, match=f"300 of {TOTAL}"):
            receiver.finish()
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize("broken_at", [0, 1, 299, 300, 301, 300 + CHUNK_BYTES, TOTAL - 1, TOTAL])
def test_files_go_on_from_any_offset(tmp_path: Path, sources: list[Path], broken_at: int) -> None:
    first = arriving(sources, tmp_path)
    first.open()
    for chunk in file_chunks(sources):
        first.add(chunk_of(chunk, max(0, broken_at - chunk.offset)))
        if chunk.offset + len(chunk.data) >= broken_at:
            break
    first.close()
    second = arriving(sources, tmp_path)
    assert second.received_bytes() == broken_at
    second.open(broken_at)
    for chunk in file_chunks(sources, broken_at):
        second.add(chunk)
    paths = second.finish()
    second.close()
    assert tuple(path.read_bytes() for path in paths) == CONTENTS


def test_a_stream_may_go_on_before_what_is_there_but_not_behind_it(tmp_path: Path, sources: list[Path]) -> None:
    first = arriving(sources, tmp_path)
    first.open()
    for chunk in list(file_chunks(sources))[:2]:
        first.add(chunk)
    first.close()
    received = 300 + CHUNK_BYTES
    with pytest.raises(StreamMalformed, match=f"at {received + 1}, but {received} bytes"):
        arriving(sources, tmp_path).open(received + 1)
    again = arriving(sources, tmp_path)
    again.open(200)
    assert again.received_bytes() == again.offset == 200
    again.close()


def test_a_part_that_changed_on_disk_is_noticed_at_the_end(tmp_path: Path, sources: list[Path]) -> None:
    first = arriving(sources, tmp_path)
    first.open()
    first.add(next(file_chunks(sources)))
    first.close()
    (tmp_path / "parts" / "0").write_bytes(b"two" * 100)
    second = arriving(sources, tmp_path)
    second.open(300)
    for chunk in file_chunks(sources, 300):
        second.add(chunk)
    with pytest.raises(DigestMismatch, match=hashlib.sha256(b"two" * 100).hexdigest()):
        second.finish()
    second.close()


@pytest.mark.parametrize(
    ("offset", "data", "fault"),
    [(1, b"x", "0 comes next"), (0, b"x" * (CHUNK_BYTES + 1), "at most"), (0, b"x" * 301, "1 bytes more")],
)
def test_a_chunk_that_does_not_fit_is_refused(
    tmp_path: Path, sources: list[Path], offset: int, data: bytes, fault: str
) -> None:
    files = ArtifactFiles(specs_of(sources[:1]), [tmp_path / "part"], 1 << 21)
    files.open()
    with pytest.raises(StreamMalformed, match=fault):
        files.add(pb.ArtifactChunk(offset=offset, data=data))
    files.close()
    assert files.received_bytes() == 0


@pytest.mark.parametrize(("size_bytes", "sha256"), [(0, "a" * 64), (101, "a" * 64), (5, "A" * 64), (5, "")])
def test_an_announcement_that_makes_no_sense_is_refused_before_a_byte_is_written(
    tmp_path: Path, size_bytes: int, sha256: str
) -> None:
    spec = pb.ArtifactSpec(kind=KIND, size_bytes=size_bytes, sha256=sha256)
    with pytest.raises(FieldInvalid):
        ArtifactFiles([spec], [tmp_path / "parts" / "0"], 100)
    assert not (tmp_path / "parts").exists()
