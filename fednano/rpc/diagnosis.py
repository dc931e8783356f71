"""Why there is no connection: gRPC tells little of it, so a short handshake of our own looks.

What a server finds wrong with a caller it does not tell the caller: gRPC's closes the connection without a word. The
caller's own certificate tells most of it.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fednano.config import Security
from fednano.errors import SettingsInvalid
from fednano.rpc.tunnel import connect
from fednano.security.certificates import hosts_of
from fednano.security.files import parse_certificates
from fednano.security.identity import serial_hex
from fednano.security.inspection import is_issued_by
from fednano.security.pem_files import clock, time_fault
from fednano.security.revocation import RevocationList

TIMEOUT_S = 3.0
REVOKED = "revoked"
# What HTTP/2 begins with, on the caller's side.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
# ssl.SSLCertVerificationError.verify_code, as OpenSSL numbers them.
NOT_YET_VALID, EXPIRED, PURPOSE = 9, 10, 26
WRONG_HOST = (62, 64)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``fault`` is one word for programs, ``words`` say what is wrong and what to do.

    Where it is not sure, a peer that is just being stopped would look the same.
    """

    fault: str
    words: str
    is_sure: bool = True


def diagnose(address: str, security: Security) -> Finding | None:
    """What keeps TLS, or plaintext, from working with the peer; None where it is something else, or nothing.

    Takes at most a few times TIMEOUT_S seconds; not for the event loop's thread.
    """
    place = host_and_port(address)
    if place is None:
        return None
    try:
        return _plaintext_finding(place) if security.insecure else _tls_finding(place, security)
    except SettingsInvalid as error:
        return Finding(fault="files", words=error.message)
    except OSError:
        # Nobody is there: gRPC's own words say that.
        return None


def host_and_port(address: str) -> tuple[str, int] | None:
    """None for an address of another form than host:port or dns:///host:port."""
    host, _, port = address.removeprefix("dns:").lstrip("/").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() else None


def _plaintext_finding(place: tuple[str, int]) -> Finding | None:
    # A TLS server takes HTTP/2's beginning for a broken greeting, and says so or hangs up; ours says nothing to a
    # greeting of TLS.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with connect(place, TIMEOUT_S) as plain, context.wrap_socket(plain):
            pass
    except ssl.SSLError as error:
        # An alert is TLS too, whatever it says.
        if "ALERT" not in (error.reason or ""):
            return None
    return Finding(
        fault="peer_speaks_tls",
        words="the peer speaks TLS, and this end was told --insecure: give --tls-ca, --tls-cert and --tls-key instead",
    )


def _tls_finding(place: tuple[str, int], security: Security) -> Finding | None:
    context = ssl.create_default_context(cafile=str(security.tls_ca))
    context.set_alpn_protocols(["h2"])
    own = _own_certificate(security)
    context.load_cert_chain(str(security.tls_cert), str(security.tls_key))
    try:
        with (
            connect(place, TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=place[0]) as wrapped,
        ):
            der = wrapped.getpeercert(binary_form=True) or b""
            accepts = _accepts_caller(wrapped)
    except ssl.SSLCertVerificationError as error:
        return _server_fault(error, place, security)
    except ssl.SSLError as error:
        return _broken_handshake(error)
    return _revoked(der, security) or (None if accepts else _caller_fault(own, security))


def _accepts_caller(wrapped: ssl.SSLSocket) -> bool:
    """In TLS 1.3 the server judges the caller after the caller's handshake is done: what comes then tells."""
    try:
        wrapped.sendall(PREFACE)
        return wrapped.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def _server_fault(error: ssl.SSLCertVerificationError, place: tuple[str, int], security: Security) -> Finding:
    shown = _shown_certificate(place, security)
    code, whose = error.verify_code, f"the peer's certificate {serial_hex(shown.serial_number)}"
    if code in (EXPIRED, NOT_YET_VALID):
        fault = "expired" if code == EXPIRED else "not_yet_valid"
        return Finding(fault=fault, words=f"{whose} {time_fault(shown)}")
    if code in WRONG_HOST:
        known = ", ".join(hosts_of(shown)) or "no host at all"
        return Finding(
            fault="wrong_host",
            words=f"{whose} is for {known}, and it was called as {place[0]}: call it by one of those names, or issue"
            f" it with `fednano certs issue ... --host {place[0]}`",
        )
    if code == PURPOSE:
        return Finding(fault="purpose", words=f"{whose} is none of a service: issue one with the role of the service")
    return Finding(
        fault="unknown_ca",
        words=f"{whose} was issued by {shown.issuer.rfc4514_string()}, and --tls-ca {security.tls_ca} holds"
        f" {_names(security.tls_ca)}: give both ends the ca.crt of one CA",
    )


def _broken_handshake(error: ssl.SSLError) -> Finding | None:
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
        return Finding(
            fault="peer_speaks_plaintext",
            words="the peer speaks plaintext, and this end wants TLS: start it with certificates, or give --insecure"
            " here too where both are on one trusted machine",
        )
    return Finding(
        fault="handshake", words=f"TLS fails with {error.reason or error}: see the peer's log", is_sure=False
    )


def _caller_fault(own: x509.Certificate, security: Security) -> Finding:
    """Why the peer hung up on this end's certificate, by what can be seen from here."""
    whose = f"the certificate in {security.tls_cert}"
    wrong_time = time_fault(own)
    if wrong_time:
        return Finding(fault="own_out_of_date", words=f"{whose} {wrong_time}")
    if not any(is_issued_by(own, authority) for authority in _authorities(security.tls_ca)):
        return Finding(
            fault="own_unknown_ca",
            words=f"the peer refuses {whose}: {own.issuer.rfc4514_string()} issued it, and --tls-ca holds"
            f" {_names(security.tls_ca)}: have it issued by the CA that the peer trusts",
        )
    if not _is_for_callers(own):
        return Finding(fault="own_purpose", words=f"the peer refuses {whose}, which is for no caller: issue another")
    return Finding(
        fault="own_refused",
        words=f"the peer hangs up on {whose} ({serial_hex(own.serial_number)}, good from"
        f" {clock(own.not_valid_before_utc)} to {clock(own.not_valid_after_utc)}): its clock may be wrong, or its"
        " --tls-ca another; see its log",
        is_sure=False,
    )


def _revoked(der: bytes, security: Security) -> Finding | None:
    if not der or security.tls_crl is None or security.tls_ca is None:
        return None
    serial = x509.load_der_x509_certificate(der).serial_number
    if not RevocationList(security.tls_crl, security.tls_ca).has(serial):
        return None
    return Finding(
        fault=REVOKED,
        words=f"the peer's certificate {serial_hex(serial)} is revoked ({security.tls_crl}): do not trust this peer"
        " until it has another",
    )


def _shown_certificate(place: tuple[str, int], security: Security) -> x509.Certificate:
    """What the peer shows, whoever vouches for it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(str(security.tls_cert), str(security.tls_key))
    with connect(place, TIMEOUT_S) as plain, context.wrap_socket(plain) as wrapped:
        return x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")


def _own_certificate(security: Security) -> x509.Certificate:
    assert security.tls_cert is not None
    return parse_certificates(security.tls_cert.read_bytes(), security.tls_cert, "--tls-cert")[0]


def _authorities(path: Path | None) -> list[x509.Certificate]:
    assert path is not None
    return parse_certificates(path.read_bytes(), path, "--tls-ca")


def _names(path: Path | None) -> str:
    return ", ".join(authority.subject.rfc4514_string() for authority in _authorities(path))


def _is_for_callers(own: x509.Certificate) -> bool:
    try:
        usages = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usages
