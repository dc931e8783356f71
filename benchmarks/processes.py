"""What processes have used so far, as Linux's /proc tells: CPU time with all children, memory now and at most."""

import os
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat after the command's name: utime, stime, cutime, cstime.
FIRST_TIME_FIELD, TIME_FIELDS = 11, 4


def with_descendants(pids: Iterable[int]) -> list[int]:
    """The processes, their children, and so on; those that have ended are left out."""
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        try:
            lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if lists:
            found.append(pid)
            waiting += [int(child) for text in lists for child in text.split()]
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds in user and kernel mode, those of children that have ended included."""
    ticks = 0
    for pid in with_descendants(pids):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(int(field) for field in fields[FIRST_TIME_FIELD : FIRST_TIME_FIELD + TIME_FIELDS])
    return ticks / TICKS_PER_S


def peak_bytes(pids: Iterable[int]) -> int:
    """The most memory that each was ever resident with (VmHWM), added up over the trees."""
    return sum(_status_bytes(pid, "VmHWM") for pid in with_descendants(pids))


def resident_bytes(pid: int) -> int:
    return _status_bytes(pid, "VmRSS")


def _status_bytes(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
