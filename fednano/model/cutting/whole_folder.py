"""A folder that is there with all that belongs to it, or not at all."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from fednano.errors import ModelInvalid


@contextmanager
def put_in_place(out: Path, parts: Collection[str] = ()) -> Iterator[Path]:
    """A new folder beside ``out``, which has that name at the block's end, or is removed if the block fails.

    Where ``out`` is there already, ``parts`` are the folders in it that are new, and nothing else of it is touched.
    Raises ModelInvalid as ``check_free`` does.
    """
    check_free(out, parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.{uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            for part in parts:
                (partial / part).rename(out / part)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(out: Path, parts: Collection[str] = ()) -> None:
    """Raises ModelInvalid where writing ``parts`` of ``out``, or all of it, would overwrite something."""
    taken = [part for part in parts if (out / part).exists()]
    if taken or (out.exists() and not (parts and out.is_dir())):
        message = f"{out / taken[0] if taken else out} is there already: name another folder, or remove it"
        raise ModelInvalid(message, file=str(out))
