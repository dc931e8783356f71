"""Certificates and keys as files: written whole or not at all, and read with words for what is wrong with them."""

import os
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fednano.errors import SettingsInvalid

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
SECRET_MODE = 0o600
PUBLIC_MODE = 0o644


def write_atomically(path: Path, content: bytes, mode: int) -> None:
    """A reader finds the old bytes or the new ones; the bytes never lie there with a wider mode than ``mode``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            # Whatever the umask took away.
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_bytes(path: Path, flag: str) -> bytes:
    """Raises SettingsInvalid, naming ``flag``, for a file that is missing or may not be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsInvalid(
            f"{flag}: cannot read {path} ({error.strerror}): `fednano certs issue` writes tls.crt, tls.key and ca.crt"
        ) from None


def parse_certificates(pem: bytes, path: Path, flag: str) -> list[x509.Certificate]:
    """All certificates of a PEM file, at least one. Raises SettingsInvalid."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise SettingsInvalid(f"{flag}: {path} holds no certificate in PEM ({_short(error)})") from None


def parse_key(pem: bytes, path: Path, flag: str) -> PrivateKey:
    """Raises SettingsInvalid where it is no unencrypted key of a kind that TLS here uses."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsInvalid(f"{flag}: {path} holds no private key in PEM ({_short(error)})") from None
    except TypeError:
        raise SettingsInvalid(
            f"{flag}: the key in {path} has a passphrase, which a service cannot ask for: give it without one"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise SettingsInvalid(f"{flag}: {path} holds a key that gRPC's TLS does not take: use EC P-256")
    return key


def key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def is_pair(certificate: x509.Certificate, key: PrivateKey) -> bool:
    """Whether the key is the certificate's."""
    both = [
        one.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for one in (certificate.public_key(), key.public_key())
    ]
    return both[0] == both[1]


def _short(error: Exception) -> str:
    return str(error).partition(".")[0].partition("\n")[0][:100] or type(error).__name__
