"""The audit log: what operators did, and which calls were refused. A JSON object a line, with the last one's digest.

It is only ever appended to, and on disk before a call is answered. A line that is changed, taken out or put in breaks
the chain at the next one. The last lines could be cut off unseen: compare the newest digest, which the service logs
with each entry, with one that was kept elsewhere.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fednano.errors import AuditBroken, SettingsInvalid, StorageFull
from fednano.telemetry import get_logger

log = get_logger("rpc.audit")

# What the first line names as its predecessor.
BEGINNING = "0" * 64
FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
TAIL_BYTES = 1 << 16
# Names come from callers, who may be anybody.
MAX_LETTERS = 200


@dataclass(frozen=True, kw_only=True)
class Entry:
    """``what`` is "asked" before an operator's call is carried out, then "done" or "failed"; or "refused".

    ``outcome`` is the contract's reason. ``resource`` are names alone, never what was sent. ``left_out`` are refusals
    of the same caller, before this one, that came too fast to be written down each.
    """

    what: str
    method: str
    role: str
    id: str
    proof: str
    serial: str
    address: str
    resource: Mapping[str, str]
    outcome: str = ""
    left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class Head:
    """The newest line: its number, from 1, and its SHA-256."""

    sequence: int = 0
    sha256: str = BEGINNING
    # Whether a digest that was looked for is that of some entry.
    has_seen: bool = False


class AuditLog:
    """One file, of one process. Any thread may append; what it returns from is on the disk."""

    def __init__(self, path: Path) -> None:
        """Goes on where the file ends. Raises SettingsInvalid where it cannot be, or another process writes to it."""
        self._path = path
        self._lock = threading.Lock()
        self._descriptor = _open(path)
        try:
            self._head = self._resume()
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, entry: Entry) -> Head:
        """Raises StorageFull where the disk does not take it: what is not written down must not be done."""
        with self._lock:
            said = asdict(entry) | {"resource": {key: value[:MAX_LETTERS] for key, value in entry.resource.items()}}
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = {"sequence": self._head.sequence + 1, "time": time, **said, "previous_sha256": self._head.sha256}
            content = json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode()
            self._write(content + b"\n")
            self._head = Head(sequence=self._head.sequence + 1, sha256=_digest(content))
            log.info("audited", sequence=self._head.sequence, sha256=self._head.sha256)
            return self._head

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, content: bytes) -> None:
        end = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, content) != len(content):
                raise OSError("the disk took a part of it")
            os.fsync(self._descriptor)
        except OSError as error:
            # Half a line would break the chain for good.
            os.ftruncate(self._descriptor, end)
            raise StorageFull(f"the audit log {self._path} cannot be written: {error}", store=str(self._path)) from None

    def _resume(self) -> Head:
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES))
        if not tail:
            return Head()
        if not tail.endswith(b"\n"):
            # The process before this one was killed while it wrote: nobody was answered about that line.
            keep = size - len(tail) + tail.rfind(b"\n") + 1
            log.warning("audit_line_torn", path=str(self._path), bytes=size - keep)
            os.ftruncate(self._descriptor, keep)
            return self._resume()
        last = tail[:-1].rpartition(b"\n")[2]
        try:
            return Head(sequence=_sequence(last), sha256=_digest(last))
        except AuditBroken as fault:
            raise SettingsInvalid(f"--audit-log: {self._path} ends with what is no entry: {fault.message}") from None


def verify(path: Path, kept_sha256: str = "") -> Head:
    """The newest entry of a log whose chain holds, and whether some entry's digest is the kept one.

    Raises AuditBroken, naming the first line that does not fit.
    """
    head = Head()
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removesuffix(b"\n")
            try:
                sequence, previous = _sequence(line), _previous(line)
            except AuditBroken as fault:
                raise AuditBroken(f"line {number} is {fault.message}", line=str(number)) from None
            if line == raw:
                raise AuditBroken(f"line {number} has no end: it was cut off", line=str(number))
            if sequence != number:
                raise AuditBroken(f"line {number} says that it is entry {sequence}", line=str(number))
            if previous != head.sha256:
                message = f"line {number} does not follow from line {number - 1}: one of the two was changed"
                raise AuditBroken(message, line=str(number))
            digest = _digest(line)
            head = Head(sequence=number, sha256=digest, has_seen=head.has_seen or digest == kept_sha256)
    return head


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, FLAGS, 0o600)
    except OSError as error:
        raise SettingsInvalid(f"--audit-log: cannot append to {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SettingsInvalid(f"--audit-log: another process writes to {path}: give each service its own") from None
    return descriptor


def _sequence(line: bytes) -> int:
    number = _field(line, "sequence")
    if not isinstance(number, int):
        raise AuditBroken(f"a line without a number: {line[:80]!r}")
    return number


def _previous(line: bytes) -> str:
    return str(_field(line, "previous_sha256"))


def _field(line: bytes, key: str) -> object:
    try:
        entry = json.loads(line)
    except ValueError:
        raise AuditBroken(f"a line that is no entry: {line[:80]!r}") from None
    return entry.get(key) if isinstance(entry, dict) else None


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
