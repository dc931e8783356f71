"""`fednano examples`: makes the examples of a federation to try things with."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from fednano.cli.exits import EXIT_WORDS, or_exit

app = typer.Typer(no_args_is_help=True, help="Make examples to try a federation with.", epilog=EXIT_WORDS)


@app.callback()
def examples() -> None:
    """Keeps `make` a command of its own while it is the only one."""


@app.command(epilog=EXIT_WORDS)
def make(
    out: Annotated[Path, typer.Argument(help="Folder to make, with client-1 and on in it.")],
    clients: Annotated[int, typer.Option(min=1, max=50, help="Clients to split the examples over.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Decides examples and split.")] = 0,
    alpha: Annotated[float, typer.Option(min=0.01, help="Dirichlet split: small is less alike.")] = 1.0,
    train_examples: Annotated[int, typer.Option(min=10, help="Training examples over all clients.")] = 1000,
    test_examples: Annotated[int, typer.Option(min=10, help="Test examples over all clients.")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")] = False,
) -> None:
    """Draws icons and questions about them, split unevenly over clients. Leaves a folder that is there as it is."""

    def work() -> bool:
        # Here, for the other commands do not need what it imports.
        from fednano.data.icon_federation import write_icon_federation

        if out.exists():
            return False
        # What is there is whole, also where this was cut short.
        draft = out.with_name(f".{out.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        write_icon_federation(
            draft,
            client_count=clients,
            alpha=alpha,
            seed=seed,
            train_count=train_examples,
            test_count=test_examples,
        )
        draft.rename(out)
        return True

    made = or_exit(work, interrupted="stopped; nothing was made")
    words = f"made the examples of {clients} clients in {out}" if made else f"{out} is there already"
    typer.echo(json.dumps({"out": str(out), "made": made}) if as_json else words)
