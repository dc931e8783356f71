"""State that was damaged while the aggregator was away: it is found out, named, and nothing is written over it."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from chaos_run import SHAPE, chaos_config, run_federation
from service import Service, killed_at_the_end
from sight import Phase

from fednano.v1 import run_pb2
from fednano.v1.error_reason_pb2 import ERROR_REASON_ARTIFACT_CORRUPT
from services.aggregator.store import runs
from services.aggregator.store.database import Store

pytestmark = pytest.mark.timeout(300)


def break_header(file: Path) -> None:
    file.write_bytes(b"not a database\0\0" + file.read_bytes()[16:])


def break_page(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096:8192] = os.urandom(4096)
    file.write_bytes(content)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def everything_in(folder: Path) -> dict[str, bytes]:
    """The claim's file apart, which says who looked last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(break_page, id="a page overwritten"),
        pytest.param(break_header, id="header overwritten", marks=pytest.mark.chaos),
        pytest.param(cut_off, id="cut off", marks=pytest.mark.chaos),
        pytest.param(empty, id="emptied", marks=pytest.mark.chaos),
    ],
)
async def test_a_damaged_database_is_refused_and_nothing_in_it_is_touched(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    database = tmp_path / "state" / "aggregator.sqlite3"
    store = Store(f"sqlite:///{database}")
    with store.transaction() as connection:
        runs.insert_run(connection, "chaos", "", chaos_config(SHAPE), "")
    store.close()
    damage(database)
    before = everything_in(tmp_path / "state")
    aggregator = Service.aggregator(tmp_path)
    async with killed_at_the_end(aggregator):
        aggregator.launch()
        assert await aggregator.ended() == 1, aggregator.log
    assert f"error: {database}" in aggregator.log
    assert "restore the newest backup" in aggregator.log
    assert "Traceback" not in aggregator.log
    after = everything_in(tmp_path / "state")
    assert {name: after.get(name) for name in before} == before


def digests(state: Path, query: str) -> list[str]:
    with closing(sqlite3.connect(f"{(state / 'aggregator.sqlite3').as_uri()}?mode=ro", uri=True)) as connection:
        return [row[0] for row in connection.execute(query)]


def place_of(state: Path, sha256: str) -> Path:
    return next((state / "artifacts").rglob(f"{sha256}*"))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)


# Of the round that is open: one that was merged already would not be missed.
UPDATE = "SELECT adapter_sha256 FROM participants WHERE adapter_sha256 != '' ORDER BY number DESC LIMIT 1"
BASE = "SELECT base_sha256 FROM rounds ORDER BY number DESC LIMIT 1"


@pytest.mark.parametrize(
    ("damage", "query"),
    [
        pytest.param(flip_a_bit, UPDATE, id="update with a flipped bit"),
        pytest.param(Path.unlink, UPDATE, id="update gone", marks=pytest.mark.chaos),
        pytest.param(flip_a_bit, BASE, id="base with a flipped bit", marks=pytest.mark.chaos),
        pytest.param(Path.unlink, BASE, id="base gone", marks=pytest.mark.chaos),
    ],
)
async def test_a_damaged_artifact_ends_the_run_which_names_it(
    tmp_path: Path, damage: Callable[[Path], None], query: str
) -> None:
    found: list[str] = []

    async def harm(aggregator: Service, state: Path) -> None:
        aggregator.kill()
        found.append(digests(state, query)[0])
        damage(place_of(state, found[0]))
        await aggregator.start()

    outcome = await run_federation(tmp_path, (Phase.PARTLY_UPDATED,), act=harm)
    assert outcome.run.state == run_pb2.Run.STATE_FAILED
    assert outcome.run.failure.reason == ERROR_REASON_ARTIFACT_CORRUPT
    assert found[0] in outcome.run.failure.message
    assert outcome.rounds[-1].merged_adapter_sha256 == ""
    assert outcome.sequences == list(range(1, outcome.run.event_sequence + 1))
