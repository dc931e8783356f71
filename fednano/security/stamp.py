"""Whether files have changed, told without reading them."""

from pathlib import Path

# Of each file its inode, size and time of change; None where it is missing.
Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp_of(*paths: Path) -> Stamp:
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
