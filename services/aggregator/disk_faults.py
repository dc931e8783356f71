"""What the operating system says of a disk, as an error that says whether trying again helps."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fednano.errors import StorageFull, StoreUnavailable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_faults_named(path: Path) -> Iterator[None]:
    """Raises StorageFull or StoreUnavailable for what an operation on ``path`` met; both may be tried again."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull(
                f"no space left for {path} ({error.strerror}): free some; nothing was lost, it is tried again",
                path=str(path),
            ) from error
        raise StoreUnavailable(
            f"{path} cannot be used now ({error.strerror or error}): it is tried again", path=str(path)
        ) from error
