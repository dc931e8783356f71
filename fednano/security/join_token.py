"""What a join token holds: a secret for the aggregator, and the digest of the CA, by which a client knows it."""

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fednano.errors import SettingsInvalid

# Seen by people, and by scanners that look for secrets.
PREFIX = "fednano-join-1."
SECRET_BYTES = 24
DIGEST_BYTES = 32
# Of its digest in hexadecimal: what a token is called by.
ID_LETTERS = 16
LETTERS = 4 * (SECRET_BYTES + DIGEST_BYTES + 2) // 3


@dataclass(frozen=True, kw_only=True)
class JoinToken:
    """``ca_sha256`` is the digest of the CA certificate that vouches for the aggregator."""

    secret: bytes
    ca_sha256: bytes

    @classmethod
    def new(cls, ca_sha256: bytes) -> Self:
        return cls(secret=secrets.token_bytes(SECRET_BYTES), ca_sha256=ca_sha256)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises SettingsInvalid; its message does not show the text."""
        content = _decoded(text.strip())
        if len(content) != SECRET_BYTES + DIGEST_BYTES:
            raise SettingsInvalid(
                f"--token: this is no join token: it begins with {PREFIX} and comes whole from"
                " `fednano client token create`"
            )
        return cls(secret=content[:SECRET_BYTES], ca_sha256=content[SECRET_BYTES:])

    def __str__(self) -> str:
        return PREFIX + base64.urlsafe_b64encode(self.secret + self.ca_sha256).decode().rstrip("=")

    def __repr__(self) -> str:
        return "JoinToken(secret)"

    @property
    def sha256(self) -> str:
        """What the aggregator keeps of it."""
        return token_sha256(str(self))


def token_sha256(text: str) -> str:
    """No salt: the secret has 192 random bits."""
    return hashlib.sha256(text.encode()).hexdigest()


def token_id(sha256: str) -> str:
    """What a token of that digest is called by; nobody can make a token of it."""
    return sha256[:ID_LETTERS]


def is_token_id(text: str) -> bool:
    return re.fullmatch(rf"[0-9a-f]{{{ID_LETTERS}}}", text) is not None


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 over the certificate, as `openssl x509 -fingerprint -sha256` shows it."""
    return certificate.fingerprint(hashes.SHA256())


def _decoded(text: str) -> bytes:
    letters = text.removeprefix(PREFIX)
    if letters == text or len(letters) > LETTERS or not re.fullmatch(r"[A-Za-z0-9_-]+", letters):
        return b""
    try:
        return base64.urlsafe_b64decode(letters + "=" * (-len(letters) % 4))
    except (binascii.Error, ValueError):
        return b""
