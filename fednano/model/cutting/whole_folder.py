"""A folder that is there with all that belongs to it, or not at all."""

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from fednano.errors import ModelInvalid, PartFailed

_SUFFIX = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def put_in_place(out: Path, parts: Collection[str] = ()) -> Iterator[Path]:
    """A new folder on the disk of ``out``, which has that name at the block's end, or is removed if the block fails.

    Where ``out`` is there already, ``parts`` are the folders in it that are new, and nothing else of it is touched.
    What a process that was killed has left of such folders goes first. Raises ModelInvalid as ``check_free`` does, and
    PartFailed where the disk is full.
    """
    check_free(out, parts)
    out = out.resolve()
    # In the folder itself where there is one: it may be another file system than what it lies in.
    home = out if out.is_dir() else out.parent
    home.mkdir(parents=True, exist_ok=True)
    for folder in {home, out.parent}:
        _sweep(folder, out.name)
    partial, descriptor = _new_folder(home, out.name)
    try:
        yield partial
        _flush(partial)
        _rename(partial, out, parts)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in _FULL:
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise PartFailed(
            f"{out} cannot be written: {why}; nothing of it was kept: make room, or name another"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def check_free(out: Path, parts: Collection[str] = ()) -> None:
    """Raises ModelInvalid where writing ``parts`` of ``out``, or all of it, would overwrite something."""
    taken = [part for part in parts if (out / part).exists()]
    if taken or (out.exists() and not (parts and out.is_dir())):
        message = f"{out / taken[0] if taken else out} is there already: name another folder, or remove it"
        raise ModelInvalid(message, file=str(out))


def _sweep(home: Path, name: str) -> None:
    """Removes such folders of processes that are no more; one of a process that lives is its own."""
    for folder in home.glob(f".{escape(name)}.*{_SUFFIX}"):
        # Who may not look into it, or locks nothing on this file system, cannot know, and leaves it.
        with suppress(OSError):
            descriptor = _claim(folder)
            if descriptor is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def _new_folder(home: Path, name: str) -> tuple[Path, int | None]:
    """With the descriptor that keeps others from sweeping it; None where nothing can be locked, nor swept."""
    while True:
        folder = home / f".{name}.{uuid4().hex[:8]}{_SUFFIX}"
        folder.mkdir()
        try:
            descriptor = _claim(folder)
        except OSError:
            return folder, None
        # Else somebody swept it before it was locked.
        if descriptor is not None:
            return folder, descriptor


def _claim(folder: Path) -> int | None:
    """A descriptor by which this process has the folder until it ends, however it ends; None: another process has it.

    Raises OSError where that cannot be told.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _flush(folder: Path) -> None:
    """To the disk, all that is in it: a name must not outlive a power failure that its content does not."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename(partial: Path, out: Path, parts: Collection[str]) -> None:
    # Somebody else may have been quicker.
    check_free(out, parts)
    if not out.exists():
        partial.rename(out)
        return
    for part in parts:
        (partial / part).rename(out / part)
