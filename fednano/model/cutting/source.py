"""Where a checkpoint lies: a folder as ``save_pretrained`` writes it, or a repository on the Hugging Face hub."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from fednano.errors import ModelInvalid


class Source(Protocol):
    """Small files are read whole, weights by ranges of bytes, so that no more is moved than is asked for."""

    name: str

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none. Raises ModelInvalid where it cannot be read."""
        ...

    def size_bytes(self, name: str) -> int:
        """Raises ModelInvalid where the file is missing."""
        ...

    def read_at(self, name: str, start: int, length: int) -> bytes:
        """May be shorter where the file ends."""
        ...

    def will_read(self, names: Collection[str]) -> None:
        """These will be read for the greater part: whoever would fetch them by pieces may fetch them now."""
        ...


class LocalFolder:
    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(name, error) from error

    def size_bytes(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_size
        except OSError as error:
            raise self._unreadable(name, error) from error

    def read_at(self, name: str, start: int, length: int) -> bytes:
        try:
            # Unbuffered, for a buffer reads more than is asked for.
            with (self._folder / name).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, start)
        except OSError as error:
            raise self._unreadable(name, error) from error

    def will_read(self, names: Collection[str]) -> None:
        del names

    def _unreadable(self, name: str, error: OSError) -> ModelInvalid:
        path = self._folder / name
        missing = isinstance(error, FileNotFoundError)
        return ModelInvalid(f"{path} {'is missing' if missing else f'cannot be read ({error})'}", file=str(path))


def open_source(name_or_folder: str, *, revision: str = "") -> Source:
    """A folder of that name, else the repository ``owner/name``, at ``revision``."""
    folder = Path(name_or_folder)
    if folder.is_dir():
        return LocalFolder(folder)
    is_repository_id = name_or_folder.count("/") == 1 and not name_or_folder.startswith((".", "/", "~"))
    if not is_repository_id:
        message = f"{name_or_folder} is no folder, nor the id of a repository (owner/name)"
        raise ModelInvalid(message, model=name_or_folder)
    try:
        # Here, for a folder needs no hub.
        from fednano.model.cutting.hub import HubRepository
    except ImportError as error:
        raise ModelInvalid("to take a model from the hub install huggingface_hub, or give a folder") from error
    return HubRepository(name_or_folder, revision=revision)
