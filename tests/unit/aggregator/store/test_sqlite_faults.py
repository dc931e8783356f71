"""A SQLite file that is damaged, gone, full or locked: named, and never overwritten."""

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL, func, select, text

from fednano.errors import StorageFull, StoreRefused, StoreUnavailable
from fednano.v1 import run_pb2 as pb
from services.aggregator.store import runs
from services.aggregator.store.database import Store
from services.aggregator.store.schema import RUNS

PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def whole_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database of some hundred pages, closed."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(f"sqlite:///{folder / 'fednano.sqlite3'}")
    with store.transaction() as connection:
        for number in range(100):
            runs.insert_run(connection, f"run-{number}", "words " * 600, pb.RunConfig(), "")
    store.close()
    return folder


@pytest.fixture
def file(tmp_path: Path, whole_state: Path) -> Path:
    shutil.copytree(whole_state, tmp_path / "state")
    return tmp_path / "state" / "fednano.sqlite3"


def scribble(file: Path, offset: int, size_bytes: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(b"\xa5" * size_bytes)


def snapshot(file: Path) -> dict[str, bytes]:
    """All that is in the folder but the claim, and the log and index that a reader makes, with nothing in them."""
    ours = [path for path in file.parent.iterdir() if path.name not in (f"{file.name}.lock", f"{file.name}-shm")]
    return {path.name: path.read_bytes() for path in ours if path.name == file.name or path.stat().st_size > 0}


def damage_header(file: Path) -> None:
    scribble(file, 0, 512)


def damage_pages(file: Path) -> None:
    scribble(file, 20 * PAGE_BYTES, 4 * PAGE_BYTES)


def cut(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [damage_header, damage_pages, cut, empty, remove])
def test_a_damaged_file_is_named_and_keeps_its_bytes(file: Path, damage: Callable[[Path], None]) -> None:
    damage(file)
    before = snapshot(file)
    for _ in range(2):
        with pytest.raises(StoreRefused, match="restore the newest backup") as refusal:
            Store(f"sqlite:///{file}")
        assert str(file) in refusal.value.message
    assert snapshot(file) == before


def test_an_emptied_file_whose_log_is_still_there_keeps_the_log(tmp_path: Path) -> None:
    killed = tmp_path / "killed.sqlite3"
    store = Store(f"sqlite:///{tmp_path / 'fednano.sqlite3'}")
    shutil.copy(tmp_path / "fednano.sqlite3-wal", tmp_path / "killed.sqlite3-wal")
    store.close()
    killed.write_bytes(b"")
    log = (tmp_path / "killed.sqlite3-wal").read_bytes()
    with pytest.raises(StoreRefused, match="is empty, but was in use"):
        Store(f"sqlite:///{killed}")
    assert (tmp_path / "killed.sqlite3-wal").read_bytes() == log


def test_a_restored_file_is_opened_again(file: Path) -> None:
    backup = file.read_bytes()
    damage_pages(file)
    with pytest.raises(StoreRefused):
        Store(f"sqlite:///{file}")
    file.write_bytes(backup)
    Store(f"sqlite:///{file}").close()


def test_damage_found_while_running_ends_all_work_on_the_file(file: Path) -> None:
    store = Store(f"sqlite:///{file}")
    scribble(file, 2 * PAGE_BYTES, file.stat().st_size - 2 * PAGE_BYTES)
    before = file.read_bytes()

    def read() -> None:
        with store.transaction() as connection:
            connection.execute(select(RUNS)).all()

    with pytest.raises(StoreUnavailable, match="restore the newest backup"):
        read()
    assert store.damage is not None
    assert str(file) in store.damage.message
    with pytest.raises(StoreUnavailable, match="restore the newest backup"), store.transaction():
        pass
    assert file.read_bytes() == before
    store.close()


def add_many(store: Store) -> None:
    with store.transaction() as connection:
        for number in range(1000):
            runs.insert_run(connection, f"more-{number}", "words " * 1000, pb.RunConfig(), "")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_loses_nothing_and_passes(small_disk: Path) -> None:
    store = Store(f"sqlite:///{small_disk / 'fednano.sqlite3'}")
    with store.transaction() as connection:
        runs.insert_run(connection, "kept", "Kept", pb.RunConfig(), "")
    with pytest.raises(StorageFull, match="no space left"):
        add_many(store)
    with store.transaction() as connection:
        assert connection.execute(select(RUNS.c.run)).scalars().all() == ["kept"]
    filler = small_disk / "filler"
    try:
        filler.write_bytes(b"0" * (2 << 20))
    except OSError:
        assert filler.exists()
    filler.unlink()
    with store.transaction() as connection:
        runs.insert_run(connection, "after", "After", pb.RunConfig(), "")
        assert connection.execute(select(func.count()).select_from(RUNS)).scalar_one() == 2
    store.close()


def test_a_full_database_is_said(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'fednano.sqlite3'}")
    with store.transaction() as connection:
        connection.execute(text("PRAGMA max_page_count = 100"))
    with pytest.raises(StorageFull):
        add_many(store)
    with store.transaction() as connection:
        assert connection.execute(select(func.count()).select_from(RUNS)).scalar_one() == 0
    store.close()


def test_a_file_that_another_program_locks_is_unavailable_after_a_while(tmp_path: Path) -> None:
    path = tmp_path / "fednano.sqlite3"
    store = Store(f"sqlite:///{path}")
    with store.transaction() as connection:
        connection.execute(text("PRAGMA busy_timeout = 200"))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"), store.transaction():
            pass
        other.execute("ROLLBACK")
    with store.transaction():
        pass
    store.close()


def test_every_commit_is_synced_to_a_write_ahead_log(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'fednano.sqlite3'}")
    with store.transaction() as connection:
        settings = [
            connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert settings == ["wal", 2, 1, 5000]
    store.close()


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a b%20?#ü" / "fednano.sqlite3"
    Store(URL.create("sqlite", database=str(path))).close()
    assert path.is_file()
    Store(URL.create("sqlite", database=str(path))).close()
