"""The training under way, on disk: what a killed client goes on from, to the same bits as if it had never been killed.

One safetensors file, replaced as a whole. It is bound to everything that the training's result depends on; one that
belongs to anything else, or that cannot be read, is as good as none.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fednano.telemetry import get_logger
from services.client.trainer import Position

log = get_logger("client.checkpoint")
FILE = "checkpoint.safetensors"
HEADER = "checkpoint"


class TrainingKey(BaseModel):
    """What the result of one round's local training depends on, but for this program itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: str
    client: str
    base_adapter_sha256: str
    config_sha256: str
    examples_sha256: str
    wire_encoding: str = "raw"


class Checkpoint(BaseModel):
    """A training's position and what was measured up to it; the tensors are kept beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: TrainingKey
    position: Position
    activations_bytes: int
    gradients_bytes: int
    seconds: float
    tensors_sha256: str = ""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Replaces the folder's checkpoint. A disk that refuses is logged: training needs no checkpoint to go on."""
    stamped = checkpoint.model_copy(update={"tensors_sha256": _digest(tensors)})
    try:
        replace_file(folder / FILE, save(dict(tensors), {HEADER: stamped.model_dump_json()}))
    except OSError as error:
        log.warning("checkpoint_not_saved", folder=str(folder), why=str(error))


def load_checkpoint(folder: Path, key: TrainingKey) -> tuple[Checkpoint, dict[str, Tensor]] | None:
    """The folder's checkpoint where it is whole and of this very training; otherwise None, and the log says why."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            checkpoint = Checkpoint.model_validate_json((file.metadata() or {}).get(HEADER, ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, ValidationError, OSError) as error:
        log.warning("checkpoint_ignored", path=str(path), why=f"it cannot be read: {error}")
        return None
    if checkpoint.key != key:
        log.info(
            "checkpoint_ignored", path=str(path), why=f"it belongs to {checkpoint.key.round}, or to other settings"
        )
        return None
    if checkpoint.tensors_sha256 != _digest(tensors):
        log.warning("checkpoint_ignored", path=str(path), why="its tensors have changed")
        return None
    return checkpoint, tensors


def replace_file(path: Path, content: bytes) -> None:
    """Puts the content there as a whole or not at all, also if this process or the machine stops meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
