"""One measurement of one contestant: its processes, its clients' marks, and what it used from round to round."""

import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.certificates import Certificates
from benchmarks.processes import cpu_s, peak_bytes, with_descendants
from benchmarks.round_marks import next_mark, open_marks

REPOSITORY = Path(__file__).parent.parent
READY_TIMEOUT_S = 60.0
FIRST_ROUND_TIMEOUT_S = 120.0
ROUND_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
TAIL_CHARACTERS = 3000


class ContestantFailed(Exception):
    """A contestant's process ended early, or its rounds do not come."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Means over the measured rounds; the peak is over the server's whole life until the last of them."""

    seconds: float
    slowest_s: float
    server_cpu_s: float
    total_cpu_s: float
    server_peak_bytes: int


@dataclass(kw_only=True)
class Arena:
    """Where one contestant runs ``total_rounds``; a context that ends all its processes."""

    folder: Path
    rounds: int
    clients: int
    certificates: Certificates | None
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)
    marks: Path = field(init=False)
    _receiver: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.marks = self.folder / "marks"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._receiver = open_marks(self.marks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._receiver.close()
        _end([process.pid for process in self.servers + self.others])
        for process in self.servers + self.others:
            process.wait(timeout=STOP_TIMEOUT_S)

    @property
    def total_rounds(self) -> int:
        """One that does not count comes before, and one after, those that are measured."""
        return self.rounds + 2

    def spawn(
        self, command: Sequence[str | Path], *, is_server: bool = False, environment: Mapping[str, str] | None = None
    ) -> None:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        (self.servers if is_server else self.others).append(process)

    def wait_for_file(self, path: Path) -> str:
        """The text of a file that a process writes once it is ready."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not path.is_file() or not path.read_text():
            self._check_alive()
            if time.monotonic() > deadline_s:
                raise self._failure(f"{path.name} did not appear in {READY_TIMEOUT_S:g} s")
            time.sleep(0.05)
        return path.read_text()

    def measure(self) -> Figures:
        """From when a client is first given round 2 (the first one warms up) until one is given the very last round."""
        self._start_of_round(1, FIRST_ROUND_TIMEOUT_S)
        starts_s = [self._start_of_round(2, ROUND_TIMEOUT_S)]
        before = self._cpu_s()
        for number in range(3, self.total_rounds + 1):
            starts_s.append(self._start_of_round(number, ROUND_TIMEOUT_S))
        after = self._cpu_s()
        durations_s = [end_s - start_s for start_s, end_s in itertools.pairwise(starts_s)]
        return Figures(
            seconds=sum(durations_s) / self.rounds,
            slowest_s=max(durations_s),
            server_cpu_s=(after[0] - before[0]) / self.rounds,
            total_cpu_s=(sum(after) - sum(before)) / self.rounds,
            server_peak_bytes=peak_bytes(process.pid for process in self.servers),
        )

    def _start_of_round(self, number: int, timeout_s: float) -> float:
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            mark = next_mark(self._receiver, min(1.0, left_s))
            if mark is None:
                self._check_alive()
            elif mark.round_number >= number:
                return mark.time_s
        raise self._failure(f"round {number} did not begin in {timeout_s:g} s")

    def _cpu_s(self) -> tuple[float, float]:
        return cpu_s(process.pid for process in self.servers), cpu_s(process.pid for process in self.others)

    def _check_alive(self) -> None:
        for process in self.servers + self.others:
            if process.poll() not in (None, 0):
                raise self._failure(f"a process ended with exit code {process.returncode}")

    def _failure(self, what: str) -> ContestantFailed:
        return ContestantFailed(f"{what}; its log ends:\n{self._log.read_text(errors='replace')[-TAIL_CHARACTERS:]}")

    @property
    def _log(self) -> Path:
        return self.folder / "log"


def _end(pids: Sequence[int]) -> None:
    """Ends whole trees: first asked, then killed."""
    tree = with_descendants(pids)
    for number, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, 1.0)):
        for pid in tree:
            _signal(pid, number)
        deadline_s = time.monotonic() + patience_s
        while any(_is_running(pid) for pid in tree) and time.monotonic() < deadline_s:
            time.sleep(0.05)


def _signal(pid: int, number: signal.Signals) -> None:
    if _is_running(pid):
        os.kill(pid, number)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
