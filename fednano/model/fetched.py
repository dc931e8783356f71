"""Presets that are too large to come with FedNano, and where ``fednano model fetch`` puts them."""

import os
from pathlib import Path

FETCHED = ("smol",)
_HALVES = ("edge", "server")


def fetched_folder(name: str) -> Path:
    """Of the user who runs this, by the XDG rules; it may not be there."""
    data_home = os.environ.get("XDG_DATA_HOME", "")
    # A relative path is to be ignored, they say.
    home = Path(data_home) if data_home.startswith("/") else Path.home() / ".local" / "share"
    return home / "fednano" / "models" / name


def is_whole(folder: Path) -> bool:
    """Whether both halves are there; what is in them is checked when they are loaded."""
    return all((folder / half / "manifest.json").is_file() for half in _HALVES)
