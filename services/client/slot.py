"""python -m services.client.slot: becomes one of several like clients, whichever is free. For containers side by side.

A slot is a name such as client-3, with a folder of examples and one of certificates. Its lock is a file that the
process holds for life, also as the client that it becomes; the kernel lets it go with the process, however that ends.
The folders are linked to from one place: the client's settings, which its health check has too, are the same in every
slot.
"""

import fcntl
import os
import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from fednano.config import read_settings
from fednano.errors import FednanoError, SettingsInvalid


class SlotSettings(BaseSettings):
    """Where the slots are. All else is the client's own, from the environment."""

    model_config = SettingsConfigDict(env_prefix="FEDNANO_SLOT_", cli_kebab_case=True, frozen=True, extra="ignore")

    examples: Path = Field(description="folder with a folder of examples for each slot")
    identities: Path | None = Field(None, description="folder with a folder of certificates for each slot")
    locks: Path = Field(description="folder of the slots' locks, shared by all that may take one")
    links: Path = Field(description="folder of this process alone, for the links examples and identity")


def main() -> int:
    """Never returns where a slot is free: the process is the client then."""
    try:
        settings = read_settings(SlotSettings)
        slot = take_slot(settings)
        link_folders(settings, slot)
        command = [sys.executable, "-m", "services.client", "--client-id", slot]
        os.execv(sys.executable, command)  # noqa: S606 - the command is our own
    except FednanoError as error:
        sys.stderr.write(f"error: {error.message}\n")
    return 2


def take_slot(settings: SlotSettings) -> str:
    """The first free slot, locked for as long as this process lives. Raises SettingsInvalid where there is none."""
    folder = settings.examples
    if not folder.is_dir():
        raise SettingsInvalid(f"--examples: no folder at {folder}")
    names = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=lambda name: (len(name), name))
    settings.locks.mkdir(parents=True, exist_ok=True)
    for name in names:
        if _lock(settings.locks / f"{name}.lock"):
            return name
    raise SettingsInvalid(f"all {len(names)} slots of {folder} are taken: make more of them, or start fewer clients")


def link_folders(settings: SlotSettings, slot: str) -> None:
    """Points ``links``/examples and ``links``/identity at the slot's folders."""
    settings.links.mkdir(parents=True, exist_ok=True)
    _link(settings.links / "examples", settings.examples / slot)
    if settings.identities is not None:
        _link(settings.links / "identity", settings.identities / slot)


def _lock(path: Path) -> bool:
    """Takes the lock for the rest of the process's life, across exec; False where another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    os.set_inheritable(descriptor, True)
    return True


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


if __name__ == "__main__":
    sys.exit(main())
