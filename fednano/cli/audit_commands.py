"""`fednano audit`: whether an audit log is as the service wrote it."""

from pathlib import Path
from typing import Annotated

import typer

from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.output import Output
from fednano.errors import AuditBroken
from fednano.rpc.audit import verify

app = typer.Typer(no_args_is_help=True, help="Check audit logs.", epilog=EXIT_WORDS)


@app.callback()
def _audit() -> None:
    """Check audit logs."""


@app.command("verify", epilog=EXIT_WORDS)
def audit_verify(
    file: Annotated[Path, typer.Argument(help="What the service was given as --audit-log.")],
    head: Annotated[str, typer.Option(help="SHA-256 that was kept of an entry: it must be there, uncut.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")] = False,
) -> None:
    """Follows the chain from the first entry to the last; exit code 1 where it does not hold."""

    def work() -> None:
        found = verify(file, head)
        if head and not found.has_seen:
            raise AuditBroken(
                f"{file} has no entry with the digest {head}: its end was cut off, or it was written anew"
            )
        facts = {"entries": found.sequence, "sha256": found.sha256}
        Output(as_json=as_json).facts(facts, [("entries", str(found.sequence)), ("newest", found.sha256)])

    or_exit(work, interrupted="stopped")
