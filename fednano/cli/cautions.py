"""What a command says beside its result, on stderr: that the way is open to all, or that a certificate ends soon."""

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import typer

from fednano.security.files import parse_certificates, read_bytes
from fednano.security.pem_files import WARNING_DAYS


def caution(insecure: bool, certificate: Path | None, *addresses: str) -> None:
    """Says what there is to say before a call to the addresses; those that are empty are called by nobody."""
    found = plaintext_cautions(addresses) if insecure else ending_cautions(certificate)
    for words in found:
        typer.echo(f"fednano: caution: {words}", err=True)


def plaintext_cautions(addresses: Iterable[str]) -> list[str]:
    """None for this machine itself, which --insecure is for."""
    open_to_all = ", ".join(address for address in addresses if address and not _is_own(address))
    if not open_to_all:
        return []
    return [f"--insecure: nothing on the way to {open_to_all} is encrypted, and nobody there is who it says it is"]


def ending_cautions(certificate: Path | None) -> list[str]:
    """Raises SettingsInvalid where the file is none. One that has ended is refused elsewhere."""
    if certificate is None:
        return []
    first = parse_certificates(read_bytes(certificate, "--tls-cert"), certificate, "--tls-cert")[0]
    days = (first.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)
    if not 0 < days < WARNING_DAYS:
        return []
    return [f"the certificate in {certificate} ends in {days:.1f} days: `fednano certs issue` renews it"]


def _is_own(address: str) -> bool:
    host = address.removeprefix("dns:").lstrip("/").rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
