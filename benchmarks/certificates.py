"""A certificate authority of our own for a measurement, and certificates for 127.0.0.1."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fednano.security.authority import create_authority, holder_folder, open_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """PEM files. The certificate is the aggregator's, which is good for both ends where nobody asks for a role."""

    authority: Path
    certificate: Path
    key: Path

    def of(self, role: Role, holder_id: str) -> Self:
        """The same for somebody else."""
        folder = holder_folder(self.authority.parent, role, holder_id)
        if not folder.exists():
            open_authority(self.authority.parent).issue(Subject(role=role, id=holder_id))
        return type(self)(authority=self.authority, certificate=folder / "tls.crt", key=folder / "tls.key")


def make_certificates(folder: Path) -> Certificates:
    authority, _ = create_authority(folder)
    made = authority.issue(Subject(role=Role.AGGREGATOR, id="aggregator"))
    # By these names the contestants look for them.
    for source, name in ((folder / "ca.crt", "ca.pem"), (made / "tls.crt", "end.pem"), (made / "tls.key", "end.key")):
        shutil.copy(source, folder / name)
    return Certificates(authority=folder / "ca.pem", certificate=folder / "end.pem", key=folder / "end.key")
