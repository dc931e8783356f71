"""The options that every operator's command has, and how one runs: connected, and with an exit code at its end."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec, get_type_hints

import grpc.aio
import typer

from fednano.cli.cautions import caution
from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.operator import Operator
from fednano.cli.output import Output
from fednano.cli.secret_file import read_secret
from fednano.config import Security
from fednano.errors import SettingsInvalid
from fednano.rpc.channels import open_channel
from fednano.rpc.ops_channel import open_ops_channel
from fednano.rpc.peer_channel import refuse_revoked
from fednano.security.files import read_bytes

CALL_PATIENCE_S = 10.0
PANEL = "Connection and output"
WorkP = ParamSpec("WorkP")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command's common options, by the names of its parameters."""

    aggregator: Annotated[
        str, typer.Option(envvar="FEDNANO_AGGREGATOR", help="host:port of the aggregator.", rich_help_panel=PANEL)
    ] = ""
    insecure: Annotated[
        bool,
        typer.Option("--insecure", envvar="FEDNANO_INSECURE", help="Plaintext, on one machine.", rich_help_panel=PANEL),
    ] = False
    tls_ca: Annotated[
        Path | None, typer.Option(envvar="FEDNANO_TLS_CA", help="PEM file of the CA.", rich_help_panel=PANEL)
    ] = None
    tls_cert: Annotated[
        Path | None,
        typer.Option(envvar="FEDNANO_TLS_CERT", help="PEM file of your certificate.", rich_help_panel=PANEL),
    ] = None
    tls_key: Annotated[
        Path | None, typer.Option(envvar="FEDNANO_TLS_KEY", help="PEM file of its private key.", rich_help_panel=PANEL)
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="FEDNANO_TOKEN_FILE",
            help="File with a bearer token, in place of a certificate.",
            rich_help_panel=PANEL,
        ),
    ] = None
    # By its variable alone: everybody on a machine sees arguments.
    token: Annotated[str, typer.Option(envvar="FEDNANO_TOKEN", hidden=True)] = ""
    tls_crl: Annotated[
        Path | None,
        typer.Option(envvar="FEDNANO_TLS_CRL", help="PEM file of the revoked certificates.", rich_help_panel=PANEL),
    ] = None
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0.1,
            help="Seconds to keep trying a peer that does not answer; 10, and 600 while watching.",
            rich_help_panel=PANEL,
        ),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else to stdout.", rich_help_panel=PANEL)
    ] = False

    @property
    def output(self) -> Output:
        return Output(as_json=self.as_json)

    @property
    def security(self) -> Security:
        """Raises SettingsInvalid where it is neither said to be plaintext nor are there all files."""
        files = {"--tls-ca": self.tls_ca, "--tls-cert": self.tls_cert, "--tls-key": self.tls_key}
        missing = [flag for flag, path in files.items() if path is None]
        if missing and not self.insecure:
            raise SettingsInvalid(f"give {', '.join(missing)}, or --insecure for plaintext on one trusted machine")
        return Security(
            insecure=self.insecure,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            tls_crl=self.tls_crl,
        )

    def patience_s(self, default_s: float = CALL_PATIENCE_S) -> float:
        return default_s if self.timeout_s is None else self.timeout_s

    def aggregator_channel(self) -> grpc.aio.Channel:
        """To the aggregator: with the certificate, or else with the bearer token, to its address for operators."""
        token = read_secret(self.token_file, "--token-file") if self.token_file else self.token.strip()
        if not token or self.insecure or self.tls_cert is not None:
            return open_channel(self.aggregator, self.security)
        if self.tls_ca is None:
            raise SettingsInvalid("give --tls-ca too: the token is shown only to an aggregator that the CA vouches for")
        return open_ops_channel(self.aggregator, read_bytes(self.tls_ca, "--tls-ca"), token)

    @asynccontextmanager
    async def operator(self, *, patience_s: float = CALL_PATIENCE_S) -> AsyncIterator[Operator]:
        """Calls to the aggregator; connecting happens on the first one."""
        if not self.aggregator:
            raise SettingsInvalid("give --aggregator HOST:PORT, or set FEDNANO_AGGREGATOR")
        check_address(self.aggregator, "--aggregator")
        caution(self.insecure, self.tls_cert, self.aggregator)
        async with self.aggregator_channel() as channel:
            peer = f"the aggregator at {self.aggregator}"
            await refuse_revoked(channel, peer)
            yield Operator(channel=channel, peer=peer, patience_s=self.patience_s(patience_s))


def operator_command(
    app: typer.Typer, name: str, *, interrupted: str = "stopped"
) -> Callable[[Callable[WorkP, Awaitable[None]]], Callable[WorkP, Awaitable[None]]]:
    """Makes a coroutine function a command. A parameter that is a dataclass stands for an option for each field."""

    def register(work: Callable[WorkP, Awaitable[None]]) -> Callable[WorkP, Awaitable[None]]:
        parameters = list(inspect.signature(work, eval_str=True).parameters.values())

        # Typer calls with keywords alone; which of them make up a dataclass is known only here.
        def call(**values: Any) -> None:
            arguments = [_argument(parameter, values) for parameter in parameters]

            async def run() -> None:
                await work(*arguments)  # type: ignore[call-arg]

            or_exit(lambda: asyncio.run(run()), interrupted=interrupted)

        # The common options come last in --help.
        shown = [field for parameter in [*parameters[1:], parameters[0]] for field in _options(parameter)]
        app.command(name, epilog=EXIT_WORDS)(_with_options(call, shown, work.__doc__))
        return work

    return register


def flat_command(app: typer.Typer, work: Callable[..., None]) -> None:
    """Makes a function a command, by its name. A parameter that is a dataclass stands for an option for each field."""
    parameters = list(inspect.signature(work, eval_str=True).parameters.values())

    def call(**values: Any) -> None:
        work(*(_argument(parameter, values) for parameter in parameters))

    shown = [field for parameter in parameters for field in _options(parameter)]
    app.command(work.__name__, epilog=EXIT_WORDS)(_with_options(call, shown, work.__doc__))


def check_address(address: str, flag: str) -> None:
    """Raises SettingsInvalid where it is no host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingsInvalid(f"{flag}: {address!r} is no host:port, such as 127.0.0.1:7000")


def _with_options(
    call: Callable[..., None], shown: Sequence[inspect.Parameter], words: str | None
) -> Callable[..., None]:
    """``call`` as Typer is to see it."""
    call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    call.__doc__ = words
    return call


def _options(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """The parameter itself, or one for each field of the dataclass that it is."""
    kind = inspect.Parameter.KEYWORD_ONLY
    if not is_dataclass(parameter.annotation):
        return [parameter.replace(kind=kind)]
    hints = get_type_hints(parameter.annotation, include_extras=True)
    return [
        inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])
        for field in fields(parameter.annotation)
    ]


def _argument(parameter: inspect.Parameter, values: dict[str, Any]) -> Any:
    if not is_dataclass(parameter.annotation):
        return values[parameter.name]
    assert isinstance(parameter.annotation, type)
    return parameter.annotation(**{field.name: values[field.name] for field in fields(parameter.annotation)})
