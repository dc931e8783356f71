"""`fednano run`: list, read, watch, steer and export runs. `run create` is in create_command.py."""

from contextlib import aclosing
from typing import Annotated

import typer
from rich.console import Console

from fednano.cli.commands import Command, operator_command
from fednano.cli.exits import EXIT_FAILED, EXIT_WORDS
from fednano.cli.measurements import ExportFormat, export_measurements
from fednano.cli.names import run_name
from fednano.cli.operator import Operator
from fednano.cli.output import last, to_json, when, words
from fednano.cli.view import RunView
from fednano.v1 import run_pb2, run_service_pb2

WATCH_PATIENCE_S = 600.0
# What the contract's field holds.
MOST_SEQUENCE = (1 << 63) - 1
WATCH_STOPPED = "stopped watching; the run goes on"

app = typer.Typer(no_args_is_help=True, help="Create, follow and steer runs.", epilog=EXIT_WORDS)
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run: demo, or runs/demo.")]


@operator_command(app, "list")
async def run_list(
    command: Command, limit: Annotated[int, typer.Option(min=1, help="Most runs to show.")] = 100
) -> None:
    """Lists runs, newest first."""
    async with command.operator() as operator:
        found = await operator.runs(limit)
    rows = [
        (
            last(run.name),
            words(run_pb2.Run.State.Name(run.state)),
            f"{last(run.current_round) or '-'}/{run.config.round_count}",
            str(run.active_client_count),
            words(run_pb2.Method.Name(run.config.method)),
            when(run.create_time),
            run.waiting_for or "-",
        )
        for run in found
    ]
    header = ("run", "state", "round", "clients", "method", "created (UTC)", "waiting for")
    command.output.listing(run_service_pb2.ListRunsResponse(runs=found), header, rows)


@operator_command(app, "get")
async def run_get(command: Command, run: Run) -> None:
    """Shows one run."""
    async with command.operator() as operator:
        _show(command, await operator.run(str(run_name(run))))


@operator_command(app, "cancel")
async def run_cancel(command: Command, run: Run) -> None:
    """Ends a run for good."""
    async with command.operator() as operator:
        _show(command, await operator.cancel(str(run_name(run))))


@operator_command(app, "pause")
async def run_pause(command: Command, run: Run) -> None:
    """Holds a run: the round in progress goes on to its end, and no other one starts."""
    async with command.operator() as operator:
        _show(command, await operator.pause(str(run_name(run))))


@operator_command(app, "resume")
async def run_resume(command: Command, run: Run) -> None:
    """Lets a paused run go on."""
    async with command.operator() as operator:
        _show(command, await operator.resume(str(run_name(run))))


@operator_command(app, "watch", interrupted=WATCH_STOPPED)
async def run_watch(
    command: Command,
    run: Run,
    after_sequence: Annotated[int, typer.Option(min=0, max=MOST_SEQUENCE, help="Show only events after this one.")] = 0,
) -> None:
    """Follows a run until it has ended, also across restarts of the aggregator.

    Exit code 1 where the run failed or was cancelled. With --json: one event a line.
    """
    await watch(command, str(run_name(run)), after_sequence)


@operator_command(app, "export")
async def run_export(
    command: Command,
    run: Run,
    out: Annotated[str, typer.Option(help="File, or folder for tensorboard; - is stdout.")],
    form: Annotated[ExportFormat, typer.Option("--format", help="How to write it.")] = ExportFormat.CSV,
) -> None:
    """Writes a run's history of measurements, all rounds and clients."""
    name = str(run_name(run))
    async with command.operator() as operator:
        count = await export_measurements(operator.measurements(name), form, out, as_json=command.as_json)
    if out != "-":
        facts = {"run": name, "measurementCount": count, "format": form.value, "out": out}
        command.output.facts(facts, [("run", name), ("measurements", str(count)), ("written to", out)])


async def watch(command: Command, name: str, after_sequence: int = 0) -> None:
    """Shows events until the run has ended; exits with 1 where it did not succeed."""
    # What is not there from the start is rather a wrong address than an aggregator that will be back.
    async with command.operator() as operator:
        await operator.run(name)
    async with command.operator(patience_s=WATCH_PATIENCE_S) as operator:
        await _follow(command, operator, name, after_sequence)
        ended = await operator.run(name)
    if ended.state != run_pb2.Run.STATE_SUCCEEDED:
        raise typer.Exit(EXIT_FAILED)


async def _follow(command: Command, operator: Operator, name: str, after_sequence: int) -> None:
    view = RunView(Console(stderr=command.as_json))
    stderr = Console(stderr=True)
    say = view.say if view.console.is_terminal else lambda line: stderr.print(line, markup=False, soft_wrap=True)
    events = operator.follow(name, after_sequence=after_sequence, say=say)
    if command.as_json:
        async with aclosing(events):
            async for event in events:
                typer.echo(to_json(event, indent=None))
    else:
        with view:
            async with aclosing(events):
                async for event in events:
                    view.apply(event)


def run_rows(run: run_pb2.Run) -> list[tuple[str, str]]:
    """A run's facts in words."""
    config = run.config
    rows = [
        ("run", run.name),
        ("title", run.display_name or "-"),
        ("state", words(run_pb2.Run.State.Name(run.state))),
        ("waiting for", run.waiting_for or "-"),
        ("round", f"{last(run.current_round) or '-'} of {config.round_count}"),
        ("active clients", str(run.active_client_count)),
        ("method", words(run_pb2.Method.Name(config.method))),
        ("created (UTC)", when(run.create_time)),
        ("started (UTC)", when(run.start_time)),
        ("ended (UTC)", when(run.end_time)),
        ("events", str(run.event_sequence)),
        ("model", config.model_digest),
    ]
    return [*rows, ("failure", run.failure.message)] if run.failure.message else rows


def _show(command: Command, run: run_pb2.Run) -> None:
    command.output.message(run, run_rows(run))
