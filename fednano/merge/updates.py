"""What a merge takes: the clients' updates, as files."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MergeUpdate:
    """One client's update on disk. ``fisher`` None stands for F = 1."""

    client: str
    example_count: int
    adapter: Path
    fisher: Path | None = None
