"""`fednano round`: a run's rounds."""

from typing import Annotated

import typer

from fednano.cli.commands import Command, operator_command
from fednano.cli.exits import EXIT_WORDS
from fednano.cli.names import round_name, run_name
from fednano.cli.output import figure, last, when, words
from fednano.cli.view import round_cells
from fednano.v1 import run_pb2, run_service_pb2

app = typer.Typer(no_args_is_help=True, help="Read a run's rounds.", epilog=EXIT_WORDS)
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run: demo, or runs/demo.")]


@operator_command(app, "list")
async def round_list(command: Command, run: Run) -> None:
    """Lists all rounds of a run, oldest first."""
    async with command.operator() as operator:
        found = await operator.rounds(str(run_name(run)))
    header = ("round", "state", "updates", "loss", "accuracy", "sent", "attempt", "merged adapter")
    rows = [(*round_cells(turn), str(turn.attempt or 1), turn.merged_adapter_sha256[:12] or "-") for turn in found]
    command.output.listing(run_service_pb2.ListRoundsResponse(rounds=found), header, rows)


@operator_command(app, "get")
async def round_get(
    command: Command,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run, or the round's whole name.")],
    number: Annotated[int | None, typer.Argument(min=0, help="The round; the newest one when absent.")] = None,
) -> None:
    """Shows one round with the part of each client in it."""
    async with command.operator() as operator:
        if number is None and "/rounds/" not in run:
            name = (await operator.run(str(run_name(run)))).current_round or f"{run_name(run)}/rounds/0"
        else:
            name = str(round_name(run, number))
        turn = await operator.round(name)
    command.output.message(turn, _rows(turn))
    if not command.as_json:
        typer.echo()
        command.output.listing(turn, ("client", *PART_HEADER), [_part_cells(part) for part in turn.participants])


PART_HEADER = ("state", "examples", "loss", "accuracy", "share", "refused")


def _rows(turn: run_pb2.Round) -> list[tuple[str, str]]:
    return [
        ("round", turn.name),
        ("state", words(run_pb2.Round.State.Name(turn.state))),
        ("attempt", str(turn.attempt or 1)),
        ("updates", f"{turn.update_count} of {len(turn.participants)}"),
        ("base adapter", turn.base_adapter_sha256 or "-"),
        ("merged adapter", turn.merged_adapter_sha256 or "-"),
        ("started (UTC)", when(turn.create_time)),
        ("ended (UTC)", when(turn.end_time)),
        *((key, f"{value:.6g}") for key, value in sorted(turn.metrics.items())),
    ]


def _part_cells(part: run_pb2.Participant) -> tuple[str, ...]:
    return (
        last(part.client),
        words(run_pb2.Participant.State.Name(part.state)),
        str(part.example_count),
        figure(part.metrics, "train/loss", ".3f"),
        figure(part.metrics, "test/accuracy", ".1%"),
        figure(part.metrics, "merge/share", ".1%"),
        part.refusal or "-",
    )
