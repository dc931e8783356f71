"""How `fednano certs` finds certificates in a folder and shows them."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import typer
from cryptography import x509

from fednano.cli.output import Output
from fednano.errors import SettingsInvalid
from fednano.security.authority import issued, read_certificate
from fednano.security.inspection import Inspection, inspect
from fednano.security.pem_files import WARNING_DAYS
from fednano.security.revocation import parse_crls, revocation_dates

HEADER = ("role", "id", "state", "not before (UTC)", "not after (UTC)", "serial", "hosts")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Certificates, and what is known beside them. ``authority`` is None where it could not be found."""

    found: tuple[x509.Certificate, ...]
    authority: x509.Certificate | None
    revoked: Mapping[int, datetime] = field(default_factory=dict)
    # Whether it is all that an authority issued.
    is_whole: bool = False


def listing(path: Path) -> Listing:
    """An authority's folder with all that it issued, a holder's folder, or one PEM file. Raises SettingsInvalid."""
    if (path / "issued").is_dir() or (path / "ca.crl").is_file():
        own = read_certificate(path / "ca.crt")
        revoked = _revoked(path / "ca.crl", own)
        return Listing(found=(own, *issued(path)), authority=own, revoked=revoked, is_whole=True)
    file = path / "tls.crt" if path.is_dir() else path
    if not file.is_file():
        raise SettingsInvalid(f"PATH: there is no certificate at {file}: give an authority's folder or a PEM file")
    places = (file.parent, file.parent.parent)
    authority_file = next((place / "ca.crt" for place in places if (place / "ca.crt").is_file()), None)
    authority = read_certificate(authority_file) if authority_file else None
    list_file = next((place / "ca.crl" for place in places if (place / "ca.crl").is_file()), None)
    known: dict[int, datetime] = {}
    # A list of another authority says nothing of this certificate.
    with suppress(SettingsInvalid):
        known = _revoked(list_file, authority) if list_file and authority else {}
    return Listing(found=(read_certificate(file),), authority=authority, revoked=known)


def show(output: Output, shown: Listing, *, is_new: bool | None = None) -> None:
    """``is_new`` says of one certificate whether it was issued just now."""
    found = [inspect(one, shown.authority, shown.revoked) for one in shown.found]
    if output.as_json:
        facts = [_facts(one) for one in found]
        issued_now = {} if is_new is None else {"issued": is_new}
        typer.echo(json.dumps({"certificates": facts} if shown.is_whole else facts[0] | issued_now, indent=2))
    elif shown.is_whole:
        output.table(HEADER, [_row(one) for one in found])
    else:
        output.pairs(_pairs(found[0], is_new))


def _revoked(path: Path, authority: x509.Certificate) -> dict[int, datetime]:
    if not path.is_file():
        return {}
    return revocation_dates(parse_crls(path.read_bytes(), path, [authority], "PATH"))


def _row(found: Inspection) -> tuple[str, ...]:
    role, holder = _who(found)
    before, after = _when(found.certificate.not_valid_before_utc), _when(found.certificate.not_valid_after_utc)
    return (role, holder, _state(found), before, after, found.serial_hex, ", ".join(found.hosts) or "-")


def _pairs(found: Inspection, is_new: bool | None) -> list[tuple[str, str]]:
    role, holder = _who(found)
    chain = {None: "no ca.crt beside it to compare with", True: "yes", False: "no: another CA issued it"}
    rows = [
        ("subject", found.certificate.subject.rfc4514_string()),
        ("role", role),
        ("id", holder),
        ("state", _state(found)),
        ("hosts", ", ".join(found.hosts) or "-"),
        ("not before (UTC)", _when(found.certificate.not_valid_before_utc)),
        ("not after (UTC)", _when(found.certificate.not_valid_after_utc)),
        ("serial", found.serial_hex),
        ("revoked (UTC)", _when(found.revoked_at) if found.revoked_at else "-"),
        ("chain ok", chain[found.is_chained]),
    ]
    if is_new is None:
        return rows
    revoked = "before, and revoked: without --renew-within there is a new one"
    before = revoked if found.revoked_at else "before, and still good: nothing was done"
    return [*rows, ("issued", "just now" if is_new else before)]


def _facts(found: Inspection) -> dict[str, object]:
    certificate, identity = found.certificate, found.identity
    return {
        "subject": certificate.subject.rfc4514_string(),
        "role": str(identity.role) if identity else "",
        "id": identity.id if identity else "",
        "isAuthority": found.is_authority,
        "state": found.state,
        "hosts": list(found.hosts),
        "notBefore": certificate.not_valid_before_utc.isoformat(),
        "notAfter": certificate.not_valid_after_utc.isoformat(),
        "serial": found.serial_hex,
        "revoked": found.revoked_at is not None,
        "revokedAt": found.revoked_at.isoformat() if found.revoked_at else "",
        "chainOk": found.is_chained,
    }


def _who(found: Inspection) -> tuple[str, str]:
    if found.identity is not None:
        return str(found.identity.role), found.identity.id
    return ("CA" if found.is_authority else "-"), "-"


def _state(found: Inspection) -> str:
    """With the days that are left where it ends soon."""
    days = (found.certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)
    return f"valid, {days:.1f} days left" if found.state == "valid" and days < WARNING_DAYS else found.state


def _when(stamp: datetime) -> str:
    return f"{stamp:%Y-%m-%d %H:%M:%S}"
