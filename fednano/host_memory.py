"""How much memory a process may still take on its machine: what is available there, and what its container has left."""

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
# Of a control group: its limit, what was taken of it, and what of that is cached files, which the kernel gives back.
# Version 2, then 1, which older engines give their containers.
_VERSIONS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free_memory_bytes(meminfo: Path = MEMINFO, cgroups: Path = CGROUPS) -> int | None:
    """The least of what the machine and this process's container have left. None where the system does not say."""
    bounds = [_available_bytes(meminfo), *(_left_bytes(cgroups, *names) for names in _VERSIONS)]
    return min((bound for bound in bounds if bound is not None), default=None)


def _available_bytes(meminfo: Path) -> int | None:
    kibibytes = _figure(meminfo, "MemAvailable:")
    return None if kibibytes is None else kibibytes * 1024


def _left_bytes(cgroups: Path, limit: str, taken: str, stat: str, cached: str) -> int | None:
    """None where there is no such group, or no limit: version 2 says "max" then, and version 1 a number past any."""
    files = (cgroups / limit, cgroups / taken)
    if not all(file.is_file() for file in files):
        return None
    limit_words, taken_words = (file.read_text().strip() for file in files)
    if not limit_words.isdecimal():
        return None
    used_bytes = int(taken_words) - (_figure(cgroups / stat, cached) or 0)
    return max(int(limit_words) - used_bytes, 0)


def _figure(file: Path, name: str) -> int | None:
    """Of a file with a name and a number on each line."""
    if not file.is_file():
        return None
    lines = (line.split() for line in file.read_text().splitlines())
    return next((int(words[1]) for words in lines if words[:1] == [name]), None)
