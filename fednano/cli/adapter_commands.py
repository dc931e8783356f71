"""`fednano adapter`: fetch a merged adapter, and look into an adapter file."""

from pathlib import Path
from typing import Annotated

import typer

from fednano.cli.adapter_file import inspect_adapter
from fednano.cli.commands import Command, operator_command
from fednano.cli.exits import EXIT_WORDS
from fednano.cli.names import round_name, run_name

app = typer.Typer(no_args_is_help=True, help="Fetch and inspect adapters.", epilog=EXIT_WORDS)


@operator_command(app, "export")
async def adapter_export(
    command: Command,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run, or a round's whole name.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    number: Annotated[int | None, typer.Option("--round", min=0, help="Of this round, not the newest one.")] = None,
) -> None:
    """Writes a run's newest adapter, or a round's: whole and with its digest checked, or not at all."""
    whole = "/rounds/" in run or number is not None
    name = str(round_name(run, number)) if whole else str(run_name(run))
    async with command.operator() as operator:
        sha256 = await operator.export(name, out)
    size = out.stat().st_size
    facts = {"name": name, "sha256": sha256, "sizeBytes": size, "out": str(out)}
    command.output.facts(facts, [("adapter of", name), ("SHA-256", sha256), ("bytes", f"{size:,}"), ("file", str(out))])


@operator_command(app, "inspect")
async def adapter_inspect(
    command: Command, file: Annotated[Path, typer.Argument(metavar="FILE", help="A safetensors file.")]
) -> None:
    """Shows an adapter file's digest, rank and tensors, and no weight itself. Needs no aggregator."""
    found = inspect_adapter(file)
    rows = [
        ("file", str(found.file)),
        ("SHA-256", found.sha256),
        ("bytes", f"{found.size_bytes:,}"),
        ("parameters", f"{found.parameter_count:,}"),
        ("rank", ", ".join(str(rank) for rank in found.ranks) or "-"),
        ("norm", _number(found.norm)),
        ("all finite", {None: "-", True: "yes", False: "no"}[found.is_finite]),
    ]
    command.output.facts(found.facts(), rows)
    if not command.as_json:
        typer.echo()
        tensors = [(one.name, one.data_type, str(list(one.shape)), _number(one.norm)) for one in found.tensors]
        command.output.table(("tensor", "type", "shape", "norm"), tensors)


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.6g}"
