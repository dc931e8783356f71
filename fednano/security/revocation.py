"""The list of revoked certificates, read again whenever its file changes."""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fednano.errors import SettingsInvalid
from fednano.security.files import parse_certificates, read_bytes
from fednano.security.stamp import stamp_of
from fednano.telemetry import get_logger

log = get_logger("security")
FLAG = "--tls-crl"
BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


class RevocationList:
    """The serials that a CRL file names. Looking costs one stat; a file that is no CRL any more changes nothing."""

    def __init__(self, path: Path, authorities: Path) -> None:
        """Reads the file; raises SettingsInvalid where it is missing, no CRL, or not one of ``authorities``."""
        self._path, self._authorities = path, authorities
        self._stamp = stamp_of(path)
        self._serials = self._read()

    def refresh(self) -> bool:
        """Whether the list has changed since it was last looked at."""
        found = stamp_of(self._path)
        if found == self._stamp:
            return False
        # Before reading: a file that is written meanwhile is read once more.
        self._stamp = found
        try:
            serials = self._read()
        except SettingsInvalid as error:
            log.error("revocation_list_refused", why=error.message, kept=len(self._serials))
            return False
        log.info("revocation_list_read", path=str(self._path), revoked=len(serials))
        has_changed, self._serials = serials != self._serials, serials
        return has_changed

    def has(self, serial: int) -> bool:
        """As of the last refresh."""
        return serial in self._serials

    def _read(self) -> frozenset[int]:
        authorities = parse_certificates(read_bytes(self._authorities, "--tls-ca"), self._authorities, "--tls-ca")
        lists = parse_crls(read_bytes(self._path, FLAG), self._path, authorities, FLAG)
        return frozenset(revocation_dates(lists))


def parse_crls(
    pem: bytes, path: Path, authorities: Sequence[x509.Certificate], flag: str
) -> list[x509.CertificateRevocationList]:
    """All lists of a file, each signed by one of the authorities. Raises SettingsInvalid."""
    blocks = BLOCK.findall(pem)
    if not blocks:
        raise SettingsInvalid(f"{flag}: {path} holds no revocation list in PEM: `fednano certs init` writes ca.crl")
    return [_parse(block, path, authorities, flag) for block in blocks]


def revocation_dates(lists: Sequence[x509.CertificateRevocationList]) -> dict[int, datetime]:
    """Since when which serials are revoked."""
    return {entry.serial_number: entry.revocation_date_utc for crl in lists for entry in crl}


def _parse(
    block: bytes, path: Path, authorities: Sequence[x509.Certificate], flag: str
) -> x509.CertificateRevocationList:
    try:
        crl = x509.load_pem_x509_crl(block)
    except ValueError:
        raise SettingsInvalid(f"{flag}: {path} holds a revocation list that is damaged") from None
    if not any(_has_signed(authority, crl) for authority in authorities):
        raise SettingsInvalid(
            f"{flag}: the list in {path} is not signed by the CA that --tls-ca names: give the ca.crl beside its"
            " ca.crt, and for an intermediate's list its ca.crt in --tls-ca too"
        )
    return crl


def _has_signed(authority: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    key = authority.public_key()
    return isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) and crl.is_signature_valid(key)
