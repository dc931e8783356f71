"""Where a client keeps a round's files: a folder of its own that stays, or one that goes with the process."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fednano.errors import SettingsInvalid
from fednano.names import ClientName


@contextmanager
def work_folder(state: Path | None, client: ClientName) -> Iterator[Path]:
    """``state``/{run}/{client}, or a temporary folder where ``state`` is None. Raises SettingsInvalid.

    The folder that stays goes when the block ends well: the run is over, and nothing is left to go on with.
    """
    if state is None:
        with tempfile.TemporaryDirectory(prefix="fednano-client-") as temporary:
            yield Path(temporary)
        return
    folder = state / client.run / client.client
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SettingsInvalid(f"--state: cannot write to {folder}: {error.strerror}") from None
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
