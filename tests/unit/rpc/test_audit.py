"""The audit log: what is in it is on the disk, goes on after a restart, and shows any change."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fednano.errors import AuditBroken, SettingsInvalid, StorageFull
from fednano.rpc.audit import BEGINNING, AuditLog, Entry, verify


def entry(method: str = "fednano.v1.RunService/EvictClient", **changes: str) -> Entry:
    fields = {"what": "asked", "role": "operator", "id": "ops", "proof": "token", "serial": "", "address": "ipv4:1"}
    return Entry(method=method, resource={"name": "runs/a/clients/b"}, **(fields | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log with three entries."""
    found = tmp_path / "audit.jsonl"
    log = AuditLog(found)
    for what in ("asked", "done", "refused"):
        log.append(entry(what=what))
    log.close()
    return found


def test_each_entry_says_who_what_and_when_and_names_its_predecessor(path: Path) -> None:
    first, second, _ = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["sequence"], first["previous_sha256"]) == (1, BEGINNING)
    assert (second["sequence"], second["what"], second["id"]) == (2, "done", "ops")
    assert second["resource"] == {"name": "runs/a/clients/b"}
    assert second["time"].endswith("+00:00")


def test_only_its_owner_may_read_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_restart_goes_on_with_the_chain(path: Path) -> None:
    log = AuditLog(path)
    head = log.append(entry())
    log.close()
    assert (head.sequence, verify(path)) == (4, head)


@pytest.mark.parametrize(
    ("tamper", "line"),
    [
        (lambda lines: [lines[0].replace(b"ops", b"eve"), *lines[1:]], "line 2"),
        (lambda lines: [lines[0], lines[2]], "line 2"),
        (lambda lines: [lines[1], lines[2]], "line 1"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], "line 2"),
        (lambda lines: [lines[1], lines[0], lines[2]], "line 1"),
        (lambda lines: [*lines[:2], lines[2][:-1]], "line 3"),
        (lambda lines: [*lines, b"not json\n"], "no entry"),
    ],
    ids=["changed", "taken out", "begun later", "put in", "swapped", "cut inside", "foreign"],
)
def test_tampering_shows(path: Path, tamper: Callable[[list[bytes]], list[bytes]], line: str) -> None:
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(AuditBroken, match=line):
        verify(path)


def test_a_cut_end_shows_by_a_digest_that_was_kept(path: Path) -> None:
    newest = verify(path).sha256
    assert verify(path, newest).has_seen
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert not verify(path, newest).has_seen


def test_a_line_that_a_kill_tore_is_taken_off(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"sequence": 4, "ti')
    AuditLog(path).close()
    assert path.read_bytes() == whole


def test_two_services_never_write_to_one_log(path: Path) -> None:
    log = AuditLog(path)
    with pytest.raises(SettingsInvalid, match="another process writes to"):
        AuditLog(path)
    log.close()


def test_a_file_that_is_no_log_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("buy milk\n")
    with pytest.raises(SettingsInvalid, match="ends with what is no entry"):
        AuditLog(other)
    assert other.read_text() == "buy milk\n"


def test_a_full_disk_refuses_and_leaves_a_whole_chain(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = AuditLog(path), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:9]))
    with pytest.raises(StorageFull):
        log.append(entry())
    monkeypatch.undo()
    assert log.append(entry()).sequence == 4
    log.close()
    assert verify(path).sequence == 4


def test_what_a_caller_says_cannot_make_a_line_of_its_own(path: Path) -> None:
    log = AuditLog(path)
    log.append(entry(id='x"}\n{"sequence": 5', method="a" * 10))
    log.close()
    assert verify(path).sequence == 4
