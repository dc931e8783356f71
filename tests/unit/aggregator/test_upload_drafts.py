"""Parts of updates on disk: gone on with, dropped when they are of no more use, refused when the disk is full."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fednano.errors import FieldInvalid, StorageFull, StreamMalformed
from fednano.names import ClientName, RoundName
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ArtifactChunk, ArtifactSpec
from services.aggregator.upload_drafts import UploadDraft, clear_drafts, clear_stale_drafts

ROUND = RoundName(run="demo", number=3)
CLIENT = ClientName(run="demo", client="a")
SIZE = 1000


def header(sha256: str = "a" * 64) -> pb.UpdateHeader:
    return pb.UpdateHeader(artifacts=[ArtifactSpec(kind=ARTIFACT_KIND_ADAPTER, size_bytes=SIZE, sha256=sha256)] * 2)


def draft_of(
    state: Path, *, name: RoundName = ROUND, client: ClientName = CLIENT, sha256: str = "a" * 64
) -> UploadDraft:
    return UploadDraft(state, name, client, header(sha256), SIZE)


def put_part(draft: UploadDraft, size_bytes: int) -> UploadDraft:
    draft.open(0)
    draft.add(ArtifactChunk(offset=0, data=b"x" * size_bytes))
    draft.close()
    return draft


def files_under(state: Path) -> list[str]:
    return sorted(str(path.relative_to(state)) for path in state.rglob("*") if path.is_file())


def test_a_part_outlives_who_wrote_it(tmp_path: Path) -> None:
    put_part(draft_of(tmp_path), 1400)
    again = draft_of(tmp_path)
    assert again.received_bytes() == 1400
    again.open(1400)
    again.add(ArtifactChunk(offset=1400, data=b"x" * 600))
    assert again.is_complete
    again.close()


def test_asking_and_announcing_write_nothing(tmp_path: Path) -> None:
    assert draft_of(tmp_path).received_bytes() == 0
    with pytest.raises(FieldInvalid):
        UploadDraft(tmp_path, ROUND, CLIENT, header(), SIZE - 1)
    with pytest.raises(StreamMalformed):
        draft_of(tmp_path).open(5)
    assert list(tmp_path.iterdir()) == []


def test_what_else_the_client_announced_for_the_round_is_dropped_when_bytes_come(tmp_path: Path) -> None:
    others = [put_part(draft_of(tmp_path, client=ClientName(run="demo", client="b")), 10)]
    others.append(put_part(draft_of(tmp_path, name=RoundName(run="demo", number=4)), 10))
    old = put_part(draft_of(tmp_path), 10)
    assert draft_of(tmp_path, sha256="b" * 64).received_bytes() == 0
    assert old.received_bytes() == 10
    put_part(draft_of(tmp_path, sha256="b" * 64), 20)
    assert old.received_bytes() == 0
    assert [other.received_bytes() for other in others] == [10, 10]
    # One folder for each round and client: two files in each.
    assert len(files_under(tmp_path)) == 6


def test_a_dropped_draft_leaves_nothing_and_may_be_dropped_again(tmp_path: Path) -> None:
    draft = put_part(draft_of(tmp_path), 10)
    draft.drop()
    draft.drop()
    assert files_under(tmp_path) == []


def test_a_round_that_is_over_takes_its_drafts_with_it(tmp_path: Path) -> None:
    kept = put_part(draft_of(tmp_path, name=RoundName(run="other", number=3)), 10)
    put_part(draft_of(tmp_path), 10)
    clear_drafts(tmp_path, ROUND)
    clear_drafts(tmp_path, ROUND)
    assert kept.received_bytes() == 10
    assert len(files_under(tmp_path)) == 2


def test_a_start_keeps_only_drafts_of_rounds_that_are_open(tmp_path: Path) -> None:
    open_round = RoundName(run="demo", number=4)
    put_part(draft_of(tmp_path), 10)
    put_part(draft_of(tmp_path, name=RoundName(run="gone", number=1)), 10)
    kept = put_part(draft_of(tmp_path, name=open_round), 10)
    (tmp_path / "incoming" / "demo" / "stray").mkdir()
    clear_stale_drafts(tmp_path, lambda name: name == open_round)
    assert kept.received_bytes() == 10
    assert sorted(path.name for path in (tmp_path / "incoming").glob("*/*")) == ["4"]


def test_a_start_without_drafts_asks_nothing(tmp_path: Path) -> None:
    clear_stale_drafts(tmp_path, lambda name: pytest.fail(str(name)))


def test_a_full_disk_is_told_as_such_and_may_be_tried_again(tmp_path: Path) -> None:
    # A limit on file sizes fails the same write that a full disk would.
    draft = draft_of(tmp_path)
    draft.open(0)
    with files_limited_to(512), pytest.raises(StorageFull, match="no space left") as raised:
        draft.add(ArtifactChunk(offset=0, data=b"x" * SIZE))
    assert raised.value.retryable
    draft.drop()
    assert files_under(tmp_path) == []
    put_part(draft_of(tmp_path), SIZE)


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
