"""`fednano client`: how clients come in, what they do, and how they are put out."""

from typing import Annotated

import typer

from fednano.cli import doctor_command, token_commands
from fednano.cli.commands import Command, operator_command
from fednano.cli.exits import EXIT_WORDS
from fednano.cli.names import client_name, run_name
from fednano.cli.output import last, when, words
from fednano.v1 import run_pb2, run_service_pb2

app = typer.Typer(no_args_is_help=True, help="Enrol, check, read and evict clients.", epilog=EXIT_WORDS)
token_commands.register(app)
doctor_command.register(app)
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run: demo, or runs/demo.")]
RunOrClient = Annotated[str, typer.Argument(metavar="RUN", help="The run, or the client's whole name.")]
Client = Annotated[str, typer.Argument(metavar="[CLIENT]", help="The client, as it calls itself.")]


@operator_command(app, "list")
async def client_list(command: Command, run: Run) -> None:
    """Lists the clients that ever joined a run."""
    async with command.operator() as operator:
        found = await operator.clients(str(run_name(run)))
    header = ("client", "state", "examples", "step", "last heard of (UTC)", "refused")
    rows = [
        (
            last(client.name),
            words(run_pb2.Client.State.Name(client.state)),
            str(client.example_count),
            str(client.step),
            when(client.last_heartbeat_time),
            client.refusal or "-",
        )
        for client in found
    ]
    command.output.listing(run_service_pb2.ListClientsResponse(clients=found), header, rows)


@operator_command(app, "get")
async def client_get(command: Command, run: RunOrClient, client: Client = "") -> None:
    """Shows one client."""
    async with command.operator() as operator:
        _show(command, await operator.client(str(client_name(run, client))))


@operator_command(app, "evict")
async def client_evict(command: Command, run: RunOrClient, client: Client = "") -> None:
    """Puts a client out of its run for good; what it sent and is not merged yet takes no part."""
    async with command.operator() as operator:
        _show(command, await operator.evict(str(client_name(run, client))))


def _show(command: Command, client: run_pb2.Client) -> None:
    rows = [
        ("client", client.name),
        ("title", client.display_name or "-"),
        ("state", words(run_pb2.Client.State.Name(client.state))),
        ("training examples", str(client.example_count)),
        ("step", str(client.step)),
        ("joined (UTC)", when(client.join_time)),
        ("last heard of (UTC)", when(client.last_heartbeat_time)),
        *((f"parameters, {part}", f"{count:,}") for part, count in sorted(client.parameter_counts.items())),
    ]
    command.output.message(client, [*rows, ("last update refused", client.refusal)] if client.refusal else rows)
