"""`fednano demo`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from fednano.cli.commands import flat_command
from fednano.cli.exits import or_exit
from fednano.cli.method_flags import MethodFlags
from fednano.cli.options import DemoMethod, DemoOptions, WireEncoding
from fednano.cli.presets import PRESETS
from fednano.cli.run_config import MOST_SEED


class PresetName(StrEnum):
    """The models that the demo knows settings for."""

    NANO = "nano"
    SMOL = "smol"


Preset = Annotated[
    PresetName, Option(help="The model, and the settings that were chosen for it; smol is fetched first.")
]
Clients = Annotated[int | None, Option(min=1, max=50, help="Client processes; 5, of smol 2.", show_default=False)]
TrainExamples = Annotated[
    int | None, Option(min=10, help="Training examples over all clients; 1000, of smol 64.", show_default=False)
]
Examples = Annotated[
    str, Option(metavar="DIR|COUNT", help="Your own, to split over clients (docs/data.md); or as --train-examples.")
]
MinimumShare = Annotated[float, Option(min=0, max=1, help="Of your own: least part of an even share for a client.")]
Encoding = Annotated[WireEncoding, Option(help="How tensors travel to the LLM server and back.")]


def register(app: typer.Typer) -> None:
    flat_command(app, demo)


def demo(
    method_flags: MethodFlags,
    preset: Preset = PresetName.NANO,
    clients: Clients = None,
    rounds: Annotated[int, Option(min=1, max=1000, help="Rounds of training.")] = 10,
    method: Annotated[DemoMethod, Option(help="Federated algorithm.")] = DemoMethod.FEDNANO,
    seed: Annotated[int, Option(min=0, max=MOST_SEED, help="Decides examples, split, adapters, order.")] = 0,
    alpha: Annotated[float, Option(min=0.01, help="Dirichlet split: small is less alike.")] = 1.0,
    out: Annotated[Path, Option(help="Folder for state, logs and report.")] = Path("runs/demo"),
    train_examples: TrainExamples = None,
    examples: Examples = "",
    minimum_share: MinimumShare = 0.3,
    model: Annotated[str, Option(help="A model's folder; the preset's where absent.", show_default=False)] = "",
    wire_encoding: Encoding = WireEncoding.RAW,
    as_json: Annotated[bool, Option("--json", help="Print only the report, as JSON; progress to stderr.")] = False,
    fresh: Annotated[bool, Option("--fresh", help="Start over even where a run was cut short.")] = False,
) -> None:
    """Tunes one frozen model with several client processes on this machine, and shows what came of it."""
    is_count = examples.isdecimal()
    defaults = PRESETS[preset.value]
    options = DemoOptions(
        out=out,
        clients=clients or defaults.clients,
        rounds=rounds,
        method=method,
        seed=seed,
        alpha=alpha,
        train_examples=(int(examples) if is_count else train_examples) or defaults.train_examples,
        examples=Path(examples) if examples and not is_count else None,
        minimum_share=minimum_share,
        preset=preset.value,
        model=model or preset.value,
        wire_encoding=wire_encoding,
        method_flags=method_flags,
        fresh=fresh,
    )
    or_exit(lambda: _demo(options, as_json), interrupted="stopped; the same command continues the run")


def _demo(options: DemoOptions, as_json: bool) -> None:
    # Here, for the other commands do not need what it imports.
    from fednano.cli.demo import run_demo
    from fednano.cli.report import to_json, to_tables
    from fednano.cli.view import RunView

    console = Console(stderr=as_json)
    report = run_demo(options, RunView(console))
    if as_json:
        typer.echo(to_json(report), nl=False)
        return
    console.print(*to_tables(report), sep="\n")
    console.print(f"report, plot and adapter: {options.out}", markup=False, highlight=False, soft_wrap=True)
