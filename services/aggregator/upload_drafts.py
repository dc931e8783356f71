"""Updates that are still coming in: files under state/incoming that outlive a broken connection and this process."""

import shutil
from pathlib import Path

from fednano.names import RoundName

INCOMING = "incoming"


def clear_drafts(state: Path, name: RoundName) -> None:
    """Drops whatever has arrived of updates for the round, which takes no more. Idempotent."""
    shutil.rmtree(_round_folder(state, name), ignore_errors=True)


def _round_folder(state: Path, name: RoundName) -> Path:
    return state / INCOMING / name.run / str(name.number)
