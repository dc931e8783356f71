"""Artifacts over both kinds of place: a local folder and a file system of fsspec."""

import os
import resource
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256 as sha256_of
from pathlib import Path

import fsspec
import pytest

from fednano.errors import ArtifactCorrupt, SettingsInvalid, StorageFull, StoreUnavailable
from services.aggregator.artifact_bucket import Bucket, open_place, without_password
from services.aggregator.artifact_store import ArtifactPlace, ArtifactStore

CONTENT = b"adapter" * 1000
SHA256 = sha256_of(CONTENT).hexdigest()


@pytest.fixture(params=["folder", "file://", "memory://"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Empty for the default folder of the state."""
    return {"folder": "", "file://": f"file://{tmp_path}/kept", "memory://": f"memory://{uuid.uuid4().hex}"}[
        request.param
    ]


def open_store(state: Path, url: str) -> ArtifactStore:
    place: ArtifactPlace | None = open_place(url, state / "cache") if url else None
    return ArtifactStore(state, place)


@pytest.fixture
def store(tmp_path: Path, url: str) -> ArtifactStore:
    return open_store(tmp_path / "state", url)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to write more to any file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_put_is_read_under_its_digest(store: ArtifactStore) -> None:
    assert store.put(CONTENT) == SHA256
    assert store.verified_path(SHA256).read_bytes() == CONTENT
    assert store.size_bytes(SHA256) == len(CONTENT)


def test_an_adopted_file_moves(store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    store.adopt(file, SHA256)
    assert not file.exists()
    assert store.verified_path(SHA256).read_bytes() == CONTENT


def test_the_same_bytes_again_change_nothing(store: ArtifactStore) -> None:
    store.put(CONTENT)
    before = store.path(SHA256).stat().st_ino
    store.put(CONTENT)
    assert store.path(SHA256).read_bytes() == CONTENT
    if isinstance(store._place, Bucket):
        return
    assert store.path(SHA256).stat().st_ino == before


def test_an_artifact_outlives_the_process(store: ArtifactStore, tmp_path: Path, url: str) -> None:
    store.put(CONTENT)
    again = open_store(tmp_path / "another-state" if url else tmp_path / "state", url)
    assert again.verified_path(SHA256).read_bytes() == CONTENT


def test_a_missing_artifact_is_named_with_its_place(store: ArtifactStore, url: str, tmp_path: Path) -> None:
    place = url.removeprefix("file://") or f"{tmp_path}/state/artifacts"
    for ask in (store.path, store.verified_path, store.size_bytes):
        with pytest.raises(ArtifactCorrupt, match=rf"{SHA256} is missing from {place}") as fault:
            ask(SHA256)
        assert fault.value.facts["sha256"] == SHA256


def test_a_changed_artifact_is_named_with_both_digests(tmp_path: Path) -> None:
    store = open_store(tmp_path, "")
    store.put(CONTENT)
    store.path(SHA256).write_bytes(b"other")
    with pytest.raises(ArtifactCorrupt, match=SHA256) as fault:
        store.verified_path(SHA256)
    assert fault.value.facts["found"] == sha256_of(b"other").hexdigest()


def test_the_right_bytes_heal_a_changed_artifact(tmp_path: Path) -> None:
    store = open_store(tmp_path, "")
    store.put(CONTENT)
    store.path(SHA256).write_bytes(b"other")
    store.put(CONTENT)
    assert store.verified_path(SHA256).read_bytes() == CONTENT


def test_a_changed_local_copy_is_fetched_anew(tmp_path: Path) -> None:
    store = open_store(tmp_path, f"memory://{uuid.uuid4().hex}")
    store.put(CONTENT)
    store.path(SHA256).write_bytes(b"other")
    assert store.verified_path(SHA256).read_bytes() == CONTENT


def test_a_changed_remote_artifact_is_found(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    store = open_store(tmp_path, f"memory://{name}")
    store.put(CONTENT)
    fsspec.filesystem("memory").pipe_file(f"/{name}/{SHA256[:2]}/{SHA256}.safetensors", b"other")
    store.path(SHA256).unlink()
    with pytest.raises(ArtifactCorrupt, match=f"{SHA256} in memory://{name}"):
        store.verified_path(SHA256)


def test_a_full_disk_leaves_nothing_behind(store: ArtifactStore, tmp_path: Path) -> None:
    with largest_file(1000), pytest.raises(StorageFull, match="no space left"):
        store.put(CONTENT)
    assert not [path for path in all_files(tmp_path) if SHA256 in path.name]
    assert store.put(CONTENT) == SHA256


def test_a_folder_that_went_away_is_unavailable(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state", "")
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable, match="cannot be used now"):
        store.put(CONTENT)


def test_a_draft_folder_is_gone_after_its_use_and_after_a_kill(tmp_path: Path) -> None:
    store = open_store(tmp_path, "")
    with store.draft_folder() as folder:
        (folder / "draft").write_bytes(b"1")
        assert folder.is_dir()
    assert not folder.exists()
    (tmp_path / "tmp" / "of-a-killed-process").mkdir()
    open_store(tmp_path, "")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_uploads_under_way_outlive_a_start(tmp_path: Path) -> None:
    upload = tmp_path / "incoming" / "run" / "part"
    upload.parent.mkdir(parents=True)
    upload.write_bytes(b"half")
    open_store(tmp_path, "")
    assert upload.read_bytes() == b"half"


def test_a_file_comes_in_from_another_disk(tmp_path: Path) -> None:
    other_disk = Path("/dev/shm")  # noqa: S108
    if not other_disk.is_dir() or other_disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm on another disk than the temporary folder")
    file = other_disk / f"fednano-{uuid.uuid4().hex}"
    file.write_bytes(CONTENT)
    store = open_store(tmp_path, "")
    store.adopt(file, SHA256)
    assert not file.exists()
    assert store.verified_path(SHA256).read_bytes() == CONTENT


def test_the_cache_drops_what_was_unused_for_longest(tmp_path: Path) -> None:
    files, threads = fsspec.filesystem("memory"), ThreadPoolExecutor(1)
    bucket = Bucket(files, f"/{uuid.uuid4().hex}", "memory://x", tmp_path / "cache", threads, cache_bytes=2500)
    store = ArtifactStore(tmp_path, bucket)
    digests = [store.put(bytes([number]) * 1000) for number in range(3)]
    now_s = store.path(digests[0]).stat().st_mtime
    for number, digest in enumerate(digests):
        os.utime(store.path(digest), (now_s - 9000 + number, now_s - 9000 + number))
    newest = store.put(b"newest" * 100)
    kept = {path.name.partition(".")[0] for path in (tmp_path / "cache").iterdir()}
    assert kept == {digests[2], newest}
    assert [store.verified_path(digest).stat().st_size for digest in digests] == [1000] * 3


def test_a_url_that_no_driver_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"--artifacts: .*nonsense"):
        open_place("nonsense://bucket", tmp_path)


def test_a_missing_driver_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"--artifacts: s3:// needs a package .*s3fs"):
        open_place("s3://bucket/folder", tmp_path)


def test_a_place_that_cannot_be_reached_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"ftp://\*\*\*@127\.0\.0\.1:1/folder"):
        open_place("ftp://user:secret@127.0.0.1:1/folder", tmp_path)


def test_a_places_password_is_not_shown() -> None:
    assert without_password("sftp://user:secret@host:22/folder?token=x") == "sftp://***@host:22/folder"


def test_a_deleted_artifact_is_gone_from_the_place_and_can_come_again(store: ArtifactStore, tmp_path: Path) -> None:
    for name in ("once", "again"):
        file = tmp_path / name
        file.write_bytes(CONTENT)
        store.adopt(file, SHA256)
        assert store.verified_path(SHA256).read_bytes() == CONTENT
        assert store.delete([SHA256, "0" * 64], frozenset) == len(CONTENT)
        with pytest.raises(ArtifactCorrupt, match="is missing"):
            store.path(SHA256)


def test_what_a_process_made_itself_is_not_deleted_by_it(store: ArtifactStore) -> None:
    store.put(CONTENT)
    assert store.delete([SHA256], frozenset) == 0
    assert store.verified_path(SHA256).read_bytes() == CONTENT
