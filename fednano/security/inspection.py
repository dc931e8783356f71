"""What a certificate is and whether it is still good, for people who look at it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fednano.errors import Unauthenticated
from fednano.security.certificates import Subject, all_hosts, hosts_of
from fednano.security.identity import Identity, identity_of, serial_hex


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """``identity`` is None for an authority, and for a certificate of somebody else."""

    certificate: x509.Certificate
    identity: Identity | None
    hosts: tuple[str, ...]
    revoked_at: datetime | None
    # None where there was no authority to compare with.
    is_chained: bool | None

    @property
    def serial_hex(self) -> str:
        return serial_hex(self.certificate.serial_number)

    @property
    def is_authority(self) -> bool:
        try:
            return self.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            return False

    @property
    def state(self) -> str:
        """valid, or the first reason why it is not."""
        now = datetime.now(UTC)
        if self.revoked_at is not None:
            return "revoked"
        if self.is_chained is False:
            return "unknown CA"
        if now < self.certificate.not_valid_before_utc:
            return "not yet valid"
        return "expired" if now > self.certificate.not_valid_after_utc else "valid"


def inspect(
    certificate: x509.Certificate, authority: x509.Certificate | None, revoked: Mapping[int, datetime]
) -> Inspection:
    try:
        identity = identity_of(certificate)
    except Unauthenticated:
        identity = None
    return Inspection(
        certificate=certificate,
        identity=identity,
        hosts=tuple(hosts_of(certificate)),
        revoked_at=revoked.get(certificate.serial_number),
        is_chained=None if authority is None else is_issued_by(certificate, authority),
    )


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_good_for(found: Inspection, subject: Subject, *, days: float) -> bool:
    """Whether it needs no renewal: it is of the subject, has its hosts, and stays valid for so many days."""
    identity = found.identity
    return (
        identity is not None
        and (identity.role, identity.id) == (subject.role, subject.id)
        and set(all_hosts(subject)) <= set(found.hosts)
        and found.state == "valid"
        and found.certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=days)
    )
