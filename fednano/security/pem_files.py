"""The files by which one end of a connection proves itself, read again when they change."""

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from fednano.config import Security
from fednano.errors import SettingsInvalid
from fednano.security.files import is_pair, parse_certificates, parse_key, read_bytes
from fednano.security.identity import serial_hex
from fednano.security.inspection import is_issued_by
from fednano.security.stamp import stamp_of
from fednano.telemetry import get_logger

log = get_logger("security")
# From so many days before a certificate's end on, it is told of when it is read, and once a day while it is in use.
WARNING_DAYS = 14
TELL_AGAIN_S = 86400.0
FLAGS = ("--tls-ca", "--tls-cert", "--tls-key")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What the files hold, as PEM, and the certificate that is shown to the peer."""

    authority_pem: bytes
    chain_pem: bytes
    key_pem: bytes
    certificate: x509.Certificate
    authorities: tuple[x509.Certificate, ...]
    # Whether the authorities that the peer is judged by have issued it, or its chain's end.
    is_chained: bool


class PemFiles:
    """Looking costs three stats. Files that do not fit each other, as between two writes, change nothing."""

    def __init__(self, security: Security) -> None:
        """Reads the files. Raises SettingsInvalid where one is missing, wrong, of another pair, or out of date."""
        self._paths = _paths(security)
        self._lock = threading.Lock()
        self._stamp = stamp_of(*self._paths)
        self._refused = ""
        self.current = _read(self._paths)
        self._tell()

    def end_s(self) -> float:
        """When the certificate in use ends, in seconds since 1970."""
        return self.current.certificate.not_valid_after_utc.timestamp()

    def refresh(self) -> bool:
        """Whether there are other credentials now. May be called in any thread."""
        with self._lock:
            found = stamp_of(*self._paths)
            if found == self._stamp:
                if time.monotonic() - self._told_s >= TELL_AGAIN_S:
                    self._tell()
                return False
            try:
                new = _read(self._paths)
            except SettingsInvalid as error:
                # The stamp stays, so that it is tried again: the other file may be on its way.
                if error.message != self._refused:
                    log.error("certificate_files_refused", why=error.message, next="the former ones stay in use")
                self._refused = error.message
                return False
            has_changed = _without_parsed(new) != _without_parsed(self.current)
            self._stamp, self._refused, self.current = found, "", new
        if has_changed:
            log.info("certificate_renewed", path=str(self._paths[1]), serial=serial_hex(new.certificate.serial_number))
            self._tell()
        return has_changed

    def _tell(self) -> None:
        self._told_s = time.monotonic()
        _tell(self.current, self._paths[1])


def _paths(security: Security) -> tuple[Path, Path, Path]:
    found = (security.tls_ca, security.tls_cert, security.tls_key)
    for path, flag in zip(found, FLAGS, strict=True):
        if path is None:
            raise SettingsInvalid(f"give {flag} FILE, or --insecure for plaintext on one trusted machine")
    authority, certificate, key = found
    assert authority is not None
    assert certificate is not None
    assert key is not None
    return authority, certificate, key


def _read(paths: tuple[Path, Path, Path]) -> Credentials:
    authority_pem, chain_pem, key_pem = (read_bytes(path, flag) for path, flag in zip(paths, FLAGS, strict=True))
    authorities = parse_certificates(authority_pem, paths[0], FLAGS[0])
    chain = parse_certificates(chain_pem, paths[1], FLAGS[1])
    if not is_pair(chain[0], parse_key(key_pem, paths[2], FLAGS[2])):
        raise SettingsInvalid(
            f"--tls-key: {paths[2]} is not the key of the certificate in {paths[1]}: give both of one"
            " `fednano certs issue`"
        )
    _check_time(chain[0], paths[1])
    return Credentials(
        authority_pem=authority_pem,
        chain_pem=chain_pem,
        key_pem=key_pem,
        certificate=chain[0],
        authorities=tuple(authorities),
        is_chained=any(is_issued_by(chain[-1], authority) for authority in authorities),
    )


def _check_time(certificate: x509.Certificate, path: Path) -> None:
    fault = time_fault(certificate)
    if fault:
        raise SettingsInvalid(f"--tls-cert: the certificate in {path} {fault}")


def time_fault(certificate: x509.Certificate) -> str:
    """What is wrong with a certificate's time, both times told, and what to do; "" where nothing is."""
    now = datetime.now(UTC)
    before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > after:
        return f"ended at {clock(after)}, and this machine's clock says {clock(now)}: `fednano certs issue` renews it"
    if now < before:
        return (
            f"is good from {clock(before)} on, and this machine's clock says {clock(now)}: set the clock right, here or"
            " where the certificate was made"
        )
    return ""


def clock(time: datetime) -> str:
    """To the second, in UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _tell(found: Credentials, path: Path) -> None:
    left = found.certificate.not_valid_after_utc - datetime.now(UTC)
    if left < timedelta(days=WARNING_DAYS):
        log.warning("certificate_ends_soon", path=str(path), days_left=round(left / timedelta(days=1), 1))
    if not found.is_chained:
        log.warning(
            "certificate_of_another_ca", path=str(path), next="check that the peer trusts the CA that issued it"
        )


def _without_parsed(found: Credentials) -> tuple[bytes, bytes, bytes]:
    return found.authority_pem, found.chain_pem, found.key_pem
