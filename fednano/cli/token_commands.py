"""`fednano client token` and `fednano client enroll`: how a machine becomes a client."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from fednano.cli.commands import Command, check_address, operator_command
from fednano.cli.enroll import Enrolling, enroll
from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.names import run_name
from fednano.cli.output import Output, when, words
from fednano.cli.secret_file import read_secret
from fednano.errors import SettingsInvalid
from fednano.security.join_token import PREFIX, JoinToken, token_id
from fednano.v1 import enrollment_service_pb2 as pb

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
token_app = typer.Typer(
    no_args_is_help=True, help="Make, list and withdraw tokens by which clients enrol.", epilog=EXIT_WORDS
)


@operator_command(token_app, "create")
async def token_create(
    command: Command,
    run: Annotated[str, typer.Option(help="The run that the client is to join; by default the newest.")] = "",
    client_id: Annotated[str, typer.Option("--id", help="The client's id; by default it chooses a new one.")] = "",
    ttl: Annotated[str, typer.Option(help="How long the token is good, such as 30m, 12h, 7d.")] = "1h",
) -> None:
    """Makes a token that enrols one client, once. It is a secret: hand it over on a way that you trust."""
    request = pb.CreateJoinTokenRequest(
        run=str(run_name(run)) if run else "", client_id=client_id, ttl=Duration(seconds=parse_ttl_s(ttl))
    )
    async with command.operator() as operator:
        created = await operator.create_join_token(request)
    rows = [
        ("token", created.token),
        ("id", created.token_id or "-"),
        ("good until (UTC)", when(created.expire_time)),
    ]
    command.output.message(created, rows)


@operator_command(token_app, "list")
async def token_list(command: Command) -> None:
    """Lists the tokens that were made, oldest first, and what became of them; never a token itself."""
    async with command.operator() as operator:
        found = await operator.join_tokens()
    header = ("id", "state", "client", "run", "made (UTC)", "good until (UTC)", "used (UTC)")
    rows = [
        (
            token.id,
            _state(token),
            token.client_id or "-",
            token.run or "-",
            when(token.create_time),
            when(token.expire_time),
            when(token.use_time),
        )
        for token in found
    ]
    command.output.listing(pb.ListJoinTokensResponse(join_tokens=found), header, rows)


@operator_command(token_app, "revoke")
async def token_revoke(
    command: Command,
    name: Annotated[str, typer.Argument(metavar="ID", help="The id that `token list` shows.")],
) -> None:
    """Withdraws a token that nobody has used yet. Of a used one revoke the certificate: `fednano certs revoke`."""
    # Who has the whole token at hand gives that: it does not leave this machine.
    known_as = token_id(JoinToken.parse(name).sha256) if name.startswith(PREFIX) else name
    async with command.operator() as operator:
        revoked = await operator.revoke_join_token(known_as)
    rows = [
        ("id", revoked.id),
        ("state", _state(revoked)),
        ("client", revoked.client_id or "-"),
        ("run", revoked.run or "-"),
        ("revoked (UTC)", when(revoked.revoke_time)),
    ]
    command.output.message(revoked, rows)


def register(app: typer.Typer) -> None:
    app.add_typer(token_app, name="token")
    app.command("enroll", epilog=EXIT_WORDS)(client_enroll)


def client_enroll(
    aggregator: Annotated[str, typer.Option(help="host:port that the aggregator listens on for new clients.")],
    out: Annotated[Path, typer.Option(help="Folder for key, certificates and settings.")],
    token: Annotated[str, typer.Option(envvar="FEDNANO_JOIN_TOKEN", help="The token; others may see arguments.")] = "",
    token_file: Annotated[Path | None, typer.Option(help="File with the token in it.")] = None,
    client_id: Annotated[str, typer.Option("--id", help="The client's id, where the token leaves it open.")] = "",
    server: Annotated[str, typer.Option(help="host:port of the LLM server, for the settings.")] = "",
    examples: Annotated[Path | None, typer.Option(help="Folder of examples, for the settings.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to keep trying.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")] = False,
) -> None:
    """Makes a key here, gets a certificate for it, and writes the client's settings. Needs no certificate yet."""

    def work() -> None:
        check_address(aggregator, "--aggregator")
        if bool(token) == bool(token_file):
            raise SettingsInvalid("give either --token, better by FEDNANO_JOIN_TOKEN, or --token-file")
        asked = Enrolling(
            token=JoinToken.parse(read_secret(token_file, "--token-file") if token_file else token),
            aggregator=aggregator,
            client_id=client_id,
            out=out,
            server=server,
            examples=examples,
            patience_s=timeout_s,
        )
        enrolled = asyncio.run(enroll(asked))
        facts = {"clientId": enrolled.client_id, "run": enrolled.run, "settings": str(out / "client.env")}
        rows = [("client", enrolled.client_id), ("run", enrolled.run or "the newest"), ("settings", facts["settings"])]
        Output(as_json=as_json).facts(facts, rows)

    or_exit(work, interrupted="stopped; the same command goes on with the same key")


def parse_ttl_s(text: str) -> int:
    """Seconds of a duration such as 12h. Raises SettingsInvalid."""
    number, unit = text[:-1], text[-1:]
    # Longer ones are no whole number that the contract's field takes.
    if not number.isdecimal() or len(number) > 9 or unit not in SECONDS or not int(number):
        raise SettingsInvalid(f"--ttl: {text!r} is no duration, such as 30m, 12h or 7d")
    return int(number) * SECONDS[unit]


def _state(token: pb.JoinToken) -> str:
    return words(pb.JoinToken.State.Name(token.state))
