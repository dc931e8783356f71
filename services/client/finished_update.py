"""A finished update on disk: a client killed while it uploads sends the same files again and trains nothing."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fednano.telemetry import get_logger
from fednano.wire.artifacts import file_sha256
from services.client.checkpoint import TrainingKey, replace_file

log = get_logger("client.checkpoint")
FILE = "update.json"


class FinishedUpdate(BaseModel):
    """``files`` are names in the same folder with their SHA-256, the adapter first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: TrainingKey
    files: tuple[tuple[str, str], ...]
    example_count: int
    metrics: dict[str, float]


def save_finished(folder: Path, finished: FinishedUpdate) -> None:
    """A disk that refuses is logged: the files can be uploaded all the same."""
    try:
        replace_file(folder / FILE, finished.model_dump_json().encode())
    except OSError as error:
        log.warning("update_not_kept", folder=str(folder), why=str(error))


def load_finished(folder: Path, key: TrainingKey) -> FinishedUpdate | None:
    """The folder's finished update where it is of this very training and all its files are unchanged."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        finished = FinishedUpdate.model_validate_json(path.read_bytes())
        if finished.key != key:
            return None
        changed = [name for name, sha256 in finished.files if file_sha256(folder / name) != sha256]
    except (ValidationError, OSError) as error:
        log.warning("update_ignored", path=str(path), why=f"it cannot be read: {error}")
        return None
    if changed:
        log.warning("update_ignored", path=str(path), why=f"{', '.join(changed)} has changed")
        return None
    return finished
