"""Who somebody is: the URI ``spiffe://fednano/{role}/{id}`` in a certificate, read from files and from calls."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import grpc.aio
from cryptography import x509

from fednano.errors import FieldInvalid, Unauthenticated
from fednano.names import ID

TRUST_DOMAIN = "fednano"
# What gRPC calls the peer's own certificate, in PEM.
CERTIFICATE_KEY = "x509_pem_cert"

Context = grpc.aio.ServicerContext[Any, Any]


class Role(StrEnum):
    """What the holder of a certificate is; docs/security.md has what each may do."""

    CLIENT = "client"
    OPERATOR = "operator"
    VIEWER = "viewer"
    SERVER = "server"
    AGGREGATOR = "aggregator"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A role and an id, and the certificate that proves them. Renewing changes the latter alone."""

    role: Role
    id: str
    serial: int
    not_before: datetime
    not_after: datetime

    @property
    def serial_hex(self) -> str:
        return serial_hex(self.serial)

    def __str__(self) -> str:
        return f"{self.role}/{self.id}"


def peer_identity(context: Context) -> Identity | None:
    """Who calls, as its certificate proves; None where the connection is plaintext, and nobody proves anything.

    TLS has verified the certificate's chain. Raises Unauthenticated where it names nobody of a federation.
    """
    found = context.auth_context().get(CERTIFICATE_KEY)
    # Parsing takes 15 us: not worth keeping what was read.
    return identity_of(x509.load_pem_x509_certificate(next(iter(found)))) if found else None


def identity_of(certificate: x509.Certificate) -> Identity:
    """Raises Unauthenticated where the certificate has not exactly one URI, or one of another form."""
    uris = _uris(certificate)
    match = re.fullmatch(rf"spiffe://{TRUST_DOMAIN}/({'|'.join(Role)})/({ID})", uris[0]) if len(uris) == 1 else None
    serial = serial_hex(certificate.serial_number)
    if match is None:
        found = ", ".join(uris)[:200] or "nothing"
        raise Unauthenticated(
            f"the certificate {serial} names nobody of a federation: it needs the one URI"
            f" spiffe://{TRUST_DOMAIN}/{{role}}/{{id}} as subject alternative name and has {found};"
            " make one with `fednano certs issue`",
            fault="no_identity",
            serial=serial,
        )
    return Identity(
        role=Role(match.group(1)),
        id=match.group(2),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def identity_uri(role: Role, identity_id: str) -> str:
    """Raises FieldInvalid for an id that cannot be part of a name."""
    if re.fullmatch(ID, identity_id) is None:
        raise FieldInvalid(
            f"ID: {identity_id!r} is no id: small letters, digits and . _ - between them, at most 63, such as site-a",
            field="id",
        )
    return f"spiffe://{TRUST_DOMAIN}/{role}/{identity_id}"


def serial_hex(serial: int) -> str:
    """As `openssl x509 -serial` writes it, in small letters."""
    digits = f"{serial:x}"
    return digits.zfill(len(digits) + len(digits) % 2)


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
