"""What the frozen encoders made of pictures, on disk: the same in every round and at every start, so computed once.

One safetensors file a picture, named by the SHA-256 of the picture's bytes, in a folder for each edge half, type and
kind of device. It is private: features can be turned back into pictures that look alike. A file that is damaged, or is
of anything else, is as good as none.

P: image tokens   D: hidden size
"""

import fcntl
import hashlib
import json
import os
import secrets
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fednano.errors import SettingsInvalid
from fednano.model.manifest import sha256_of
from fednano.telemetry import get_logger

log = get_logger("client.features")
# Changes where pictures are prepared, or files written, in another way.
FORMAT = 1
TENSOR, DIGEST = "image_embeds_PD", "sha256"
SUFFIX, DRAFT = ".safetensors", ".part"
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


def features_key(edge_folder: Path, encoder_type: torch.dtype, device: torch.device) -> str:
    """What features depend on but for the picture: the edge half's files, to the byte, and what computes with them."""
    files = {path.name: sha256_of(path) for path in sorted(edge_folder.iterdir()) if path.is_file()}
    known = [FORMAT, torch.__version__, str(encoder_type), device.type, files]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


class FeatureCache:
    """For one process at a time, and one thread but for ``has``. All keys share the bytes."""

    def __init__(self, folder: Path, key: str, most_bytes: int) -> None:
        self._folder, self._key, self._most_bytes = folder, key, most_bytes
        self._lock = -1
        # Least recently used first.
        self._sizes: OrderedDict[Path, int] = OrderedDict()
        self._held_bytes = 0
        self._is_refused = False

    def open(self) -> bool:
        """Looks through the folder; False where another process has it. Raises SettingsInvalid where it cannot be."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
            (self._folder / self._key).mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
            (self._folder / self._key).chmod(PRIVATE_FOLDER)
            self._lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            log.warning("feature_cache_busy", folder=str(self._folder), next="give each client a --feature-cache")
            return False
        except OSError as error:
            raise SettingsInvalid(f"--feature-cache: cannot write to {self._folder}: {error.strerror}") from None
        self._scan()
        return True

    def close(self) -> None:
        """Lets another process have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def has(self, picture_sha256: str) -> bool:
        """Whether there is a file; only ``get`` finds out whether it is whole."""
        return self._path(picture_sha256) in self._sizes

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much more can be kept without losing anything."""
        return not self._is_refused and self._held_bytes + size_bytes <= self._most_bytes

    def get(self, picture_sha256: str) -> Tensor | None:
        """[P, D] in the type that it was computed in; None where there is none that is whole."""
        path = self._path(picture_sha256)
        if path not in self._sizes:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                found: str | None = (file.metadata() or {}).get(DIGEST)
                embeds_PD: Tensor = file.get_tensor(TENSOR)
        except (SafetensorError, OSError) as error:
            self._give_up(path, f"it cannot be read: {error}")
            return None
        if found != self._digest(picture_sha256, embeds_PD):
            self._give_up(path, "its bytes have changed")
            return None
        self._sizes.move_to_end(path)
        os.utime(path)
        return embeds_PD

    def put(self, picture_sha256: str, embeds_PD: Tensor) -> None:
        """Keeps it; what was not used for longest goes for it. A disk that refuses is logged, and not asked again."""
        path = self._path(picture_sha256)
        content = save({TENSOR: embeds_PD.contiguous()}, {DIGEST: self._digest(picture_sha256, embeds_PD)})
        if self._is_refused or path in self._sizes or len(content) > self._most_bytes:
            return
        while not self.has_room(len(content)):
            self._remove(next(iter(self._sizes)))
        try:
            _write(path, content)
        except OSError as error:
            self._is_refused = True
            log.warning("feature_cache_refused", folder=str(self._folder), why=str(error))
            return
        self._sizes[path] = len(content)
        self._held_bytes += len(content)

    def _path(self, picture_sha256: str) -> Path:
        return self._folder / self._key / picture_sha256[:2] / f"{picture_sha256}{SUFFIX}"

    def _digest(self, picture_sha256: str, embeds_PD: Tensor) -> str:
        """Of the numbers and of what they are of: a file under another's name is found out."""
        known = [self._key, picture_sha256, str(embeds_PD.dtype), list(embeds_PD.shape)]
        digest = hashlib.sha256(json.dumps(known).encode())
        digest.update(embeds_PD.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _scan(self) -> None:
        for draft in self._folder.glob(f"*/*/*{DRAFT}"):
            draft.unlink(missing_ok=True)
        found = sorted((path.stat().st_mtime_ns, path) for path in self._folder.glob(f"*/*/*{SUFFIX}"))
        self._sizes = OrderedDict((path, path.stat().st_size) for _, path in found)
        self._held_bytes = sum(self._sizes.values())
        while self._held_bytes > self._most_bytes:
            self._remove(next(iter(self._sizes)))

    def _give_up(self, path: Path, why: str) -> None:
        log.warning("feature_ignored", path=str(path), why=why)
        self._remove(path)

    def _remove(self, path: Path) -> None:
        self._held_bytes -= self._sizes.pop(path)
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """As a whole or not at all. Not flushed to the disk: what is lost there is found out, and computed again."""
    path.parent.mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
    draft = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{DRAFT}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
