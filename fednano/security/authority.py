"""A certificate authority in a folder: its key, what it issued, what it revoked.

ca.crt, ca.key, ca.crl and issued/{serial}.crt are the authority's own; {role}-{id}/ has what one holder needs.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from fednano.errors import ResourceNotFound, SettingsInvalid
from fednano.security.certificates import (
    AUTHORITY_DAYS,
    LEAF_DAYS,
    Subject,
    new_authority,
    new_certificate,
    new_key,
    requested_key,
)
from fednano.security.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    PrivateKey,
    certificate_pem,
    is_pair,
    key_pem,
    parse_certificates,
    parse_key,
    read_bytes,
    write_atomically,
)
from fednano.security.identity import Role, identity_of, serial_hex
from fednano.security.revocation import parse_crls, revocation_dates


@dataclass(frozen=True, kw_only=True)
class Authority:
    """An opened authority. What it writes is there for other processes at once; several may use one folder."""

    folder: Path
    certificate: x509.Certificate
    key: PrivateKey

    def issue(self, subject: Subject, days: float = LEAF_DAYS) -> Path:
        """A new key and certificate in the holder's folder, in place of what was there; returns the folder."""
        key = new_key()
        certificate = self._sign(subject, key.public_key(), days)
        folder = holder_folder(self.folder, subject.role, subject.id)
        write_atomically(folder / "tls.key", key_pem(key), SECRET_MODE)
        write_atomically(folder / "tls.crt", certificate_pem(certificate), PUBLIC_MODE)
        write_atomically(folder / "ca.crt", certificate_pem(self.certificate), PUBLIC_MODE)
        return folder

    def sign_request(self, request_pem: bytes, subject: Subject, days: float = LEAF_DAYS) -> bytes:
        """A certificate in PEM for the key of a PKCS #10 request, of which nothing but the key is used.

        Raises FieldInvalid for a request or a subject that cannot be.
        """
        return certificate_pem(self._sign(subject, requested_key(request_pem), days))

    def _sign(self, subject: Subject, key: CertificatePublicKeyTypes, days: float) -> x509.Certificate:
        certificate = new_certificate(subject, key, self.certificate, self.key, days)
        # Before anyone has it: what is not on record could not be revoked by its holder's name.
        name = f"{serial_hex(certificate.serial_number)}.crt"
        write_atomically(self.folder / "issued" / name, certificate_pem(certificate), PUBLIC_MODE)
        return certificate

    def revoke(self, role: Role, identity_id: str, serial: int | None = None) -> list[int]:
        """Revokes all certificates of an identity, or the one of that serial; returns those revoked just now.

        Raises ResourceNotFound where none was ever issued.
        """
        identities = [identity_of(one) for one in issued(self.folder)]
        found = [
            one.serial
            for one in identities
            if (one.role, one.id) == (role, identity_id) and serial in (None, one.serial)
        ]
        if not found:
            which = f"certificate {serial_hex(serial)}" if serial is not None else "certificate"
            raise ResourceNotFound(
                f"{self.folder} never issued a {which} for {role}/{identity_id}; `fednano certs show {self.folder}`"
                " lists what it issued",
                name=f"{role}/{identity_id}",
            )
        with _locked(self.folder):
            revoked = self.revoked()
            new = [number for number in found if number not in revoked]
            if new:
                self.write_crl(new)
        return new

    def revoked(self) -> dict[int, datetime]:
        """Since when which serials are revoked."""
        crl = self._read_crl()
        return {} if crl is None else revocation_dates([crl])

    def write_crl(self, serials: Sequence[int] = ()) -> None:
        """The list with ``serials`` added, signed anew."""
        old, now = self._read_crl(), datetime.now(UTC)
        # It is good until there is another one: nobody is there to sign one each day.
        end = max(self.certificate.not_valid_after_utc, now + timedelta(days=1))
        builder = x509.CertificateRevocationListBuilder(self.certificate.subject, now, end)
        for entry in old or ():
            builder = builder.add_revoked_certificate(entry)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        number = old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number if old is not None else 0
        builder = builder.add_extension(x509.CRLNumber(number + 1), critical=False)
        crl = builder.sign(self.key, hashes.SHA256())
        write_atomically(self.folder / "ca.crl", crl.public_bytes(Encoding.PEM), PUBLIC_MODE)

    def _read_crl(self) -> x509.CertificateRevocationList | None:
        path = self.folder / "ca.crl"
        return parse_crls(path.read_bytes(), path, [self.certificate], "DIR")[0] if path.exists() else None


def create_authority(folder: Path, days: int = AUTHORITY_DAYS) -> tuple[Authority, bool]:
    """The folder's authority, and whether it was made just now; one that is there stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if _parts(folder):
            return open_authority(folder), False
        key = new_key()
        authority = Authority(folder=folder, certificate=new_authority(key, days), key=key)
        write_atomically(folder / "ca.key", key_pem(key), SECRET_MODE)
        write_atomically(folder / "ca.crt", certificate_pem(authority.certificate), PUBLIC_MODE)
        authority.write_crl()
    return authority, True


def open_authority(folder: Path) -> Authority:
    """Raises SettingsInvalid where there is none, half of one, or two halves that do not fit."""
    parts = _parts(folder)
    if not parts:
        raise SettingsInvalid(f"DIR: there is no authority in {folder}: make one with `fednano certs init {folder}`")
    if len(parts) == 1:
        raise SettingsInvalid(
            f"DIR: {folder} has {parts[0]} and not the other half of ca.crt and ca.key: restore it from a backup, or"
            " begin in an empty folder"
        )
    certificate = read_certificate(folder / "ca.crt")
    key = parse_key(read_bytes(folder / "ca.key", "DIR"), folder / "ca.key", "DIR")
    if not is_pair(certificate, key):
        raise SettingsInvalid(
            f"DIR: {folder / 'ca.key'} is not the key of {folder / 'ca.crt'}: restore both from one backup"
        )
    return Authority(folder=folder, certificate=certificate, key=key)


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file. Raises SettingsInvalid."""
    return parse_certificates(read_bytes(path, "DIR"), path, "DIR")[0]


def issued(folder: Path) -> list[x509.Certificate]:
    """All certificates that an authority issued, the oldest first."""
    paths = sorted((folder / "issued").glob("*.crt"), key=lambda path: path.stat().st_mtime_ns)
    return [read_certificate(path) for path in paths]


def holder_folder(folder: Path, role: Role, identity_id: str) -> Path:
    return folder / f"{role}-{identity_id}"


def _parts(folder: Path) -> list[str]:
    return [name for name in ("ca.crt", "ca.key") if (folder / name).exists()]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two who revoke at one time must not lose the other's entry."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
