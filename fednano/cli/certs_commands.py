"""`fednano certs`: a small certificate authority in a folder. It needs no service, and no connection."""

from pathlib import Path
from typing import Annotated

import typer

from fednano.cli.certs_view import listing, show
from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.output import Output
from fednano.errors import FieldInvalid
from fednano.security.authority import Authority, create_authority, holder_folder, open_authority, read_certificate
from fednano.security.certificates import AUTHORITY_DAYS, LEAF_DAYS, Subject
from fednano.security.files import is_pair, parse_key, read_bytes
from fednano.security.identity import Role, identity_uri, serial_hex
from fednano.security.inspection import inspect, is_good_for

app = typer.Typer(no_args_is_help=True, help="Make, renew and revoke certificates.", epilog=EXIT_WORDS)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The authority's folder: ca.crt, ca.key, ca.crl.")]
RoleName = Annotated[Role, typer.Argument(metavar="ROLE", help="client, operator, viewer, server or aggregator.")]
HolderId = Annotated[str, typer.Argument(metavar="ID", help="Its id, such as site-a.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")]
STOPPED = "stopped"


@app.command("init", epilog=EXIT_WORDS)
def certs_init(
    folder: Folder,
    days: Annotated[int, typer.Option(min=1, max=36500, help="Days that the authority is good for.")] = AUTHORITY_DAYS,
    as_json: AsJson = False,
) -> None:
    """Makes an authority; one that is there stays as it is. Its key, ca.key, is worth more than any other file."""
    or_exit(lambda: _init(folder, days, Output(as_json=as_json)), interrupted=STOPPED)


@app.command("issue", epilog=EXIT_WORDS)
def certs_issue(
    folder: Folder,
    role: RoleName,
    holder_id: HolderId,
    host: Annotated[list[str] | None, typer.Option(help="Name or address that a service is called by.")] = None,
    days: Annotated[float, typer.Option(min=0.0001, max=36500, help="Days that it is good for.")] = LEAF_DAYS,
    renew_within: Annotated[
        float | None,
        typer.Option(min=0, help="Leave one alone that has these hosts and so many days to go, or that is revoked."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Issues a certificate into DIR/ROLE-ID: tls.crt, tls.key, ca.crt. Issued again, it is the same identity's."""
    subject = Subject(role=role, id=holder_id, hosts=tuple(host or ()))
    or_exit(lambda: _issue(folder, subject, days, renew_within, Output(as_json=as_json)), interrupted=STOPPED)


@app.command("revoke", epilog=EXIT_WORDS)
def certs_revoke(
    folder: Folder,
    role: RoleName,
    holder_id: HolderId,
    serial: Annotated[str, typer.Option(help="Only the certificate of this serial, in hexadecimal digits.")] = "",
    as_json: AsJson = False,
) -> None:
    """Revokes what was issued to somebody, in DIR/ca.crl: give that file to the services as --tls-crl."""
    or_exit(lambda: _revoke(folder, role, holder_id, serial, Output(as_json=as_json)), interrupted=STOPPED)


@app.command("show", epilog=EXIT_WORDS)
def certs_show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An authority's folder, a holder's, or a PEM file.")],
    as_json: AsJson = False,
) -> None:
    """Shows an authority and all that it issued, or one certificate."""
    or_exit(lambda: show(Output(as_json=as_json), listing(path)), interrupted=STOPPED)


def _init(folder: Path, days: int, output: Output) -> None:
    authority, is_new = create_authority(folder, days)
    certificate = authority.certificate
    name = certificate.subject.rfc4514_string()
    rows = [
        ("authority", name),
        ("folder", str(folder)),
        ("state", "made just now" if is_new else "was there already, and stays as it is"),
        ("not after (UTC)", f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S}"),
    ]
    facts = {
        "authority": name,
        "folder": str(folder),
        "created": is_new,
        "notAfter": certificate.not_valid_after_utc.isoformat(),
    }
    output.facts(facts, rows)


def _issue(folder: Path, subject: Subject, days: float, renew_within: float | None, output: Output) -> None:
    authority = open_authority(folder)
    identity_uri(subject.role, subject.id)
    holder = holder_folder(folder, subject.role, subject.id)
    is_new = renew_within is None or not _is_left_alone(authority, holder, subject, renew_within)
    if is_new:
        authority.issue(subject, days)
    show(output, listing(holder), is_new=is_new)


def _is_left_alone(authority: Authority, holder: Path, subject: Subject, days: float) -> bool:
    """A revoked one too: what renews by the clock must not let somebody in again."""
    certificate, key = holder / "tls.crt", holder / "tls.key"
    if not certificate.is_file() or not key.is_file():
        return False
    found = read_certificate(certificate)
    inspected = inspect(found, authority.certificate, authority.revoked())
    is_usable = is_pair(found, parse_key(read_bytes(key, "DIR"), key, "DIR"))
    return inspected.revoked_at is not None or (is_usable and is_good_for(inspected, subject, days=days))


def _revoke(folder: Path, role: Role, holder_id: str, serial: str, output: Output) -> None:
    identity_uri(role, holder_id)
    new = open_authority(folder).revoke(role, holder_id, _serial(serial))
    serials = [serial_hex(number) for number in new]
    rows = [
        ("revoked just now", ", ".join(serials) or "nothing: it was revoked before"),
        ("list", str(folder / "ca.crl")),
        ("next", "give the list to every service as --tls-crl; a service that has the file already reads it at once"),
    ]
    output.facts({"revoked": serials, "list": str(folder / "ca.crl")}, rows)


def _serial(text: str) -> int | None:
    try:
        return int(text.replace(":", ""), 16) if text else None
    except ValueError:
        raise FieldInvalid(f"--serial: {text!r} has more than hexadecimal digits", field="serial") from None
