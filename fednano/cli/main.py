"""The command ``fednano``. Exit codes: 0 done, 1 a part or a call failed, 2 wrong usage, 130 stopped by Ctrl-C."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from fednano.cli.options import DemoMethod, DemoOptions
from fednano.errors import ExamplesInvalid, FednanoError, ModelInvalid, SettingsInvalid
from fednano.telemetry import configure_logging

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Federated tuning of a frozen multimodal model.")
ResultT = TypeVar("ResultT")


def main() -> None:
    """The entry point."""
    configure_logging("cli", level="ERROR")
    app()


@app.command()
def demo(
    clients: Annotated[int, typer.Option(min=1, max=50, help="Client processes.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of training.")] = 10,
    method: Annotated[DemoMethod, typer.Option(help="Federated algorithm.")] = DemoMethod.FEDNANO,
    seed: Annotated[int, typer.Option(min=0, help="Decides examples, split, adapters, order.")] = 0,
    alpha: Annotated[float, typer.Option(min=0.01, help="Dirichlet split: small is less alike.")] = 1.0,
    out: Annotated[Path, typer.Option(help="Folder for state, logs and report.")] = Path("runs/demo"),
    train_examples: Annotated[int, typer.Option(min=10, help="Training examples over all clients.")] = 1000,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only the report, as JSON; progress to stderr.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over even where a run was cut short.")] = False,
) -> None:
    """Tunes one frozen model with several client processes on this machine, and shows what came of it."""
    # Here, for the other commands do not need what it imports.
    from fednano.cli.demo import run_demo
    from fednano.cli.report import to_json, to_tables
    from fednano.cli.view import RunView

    options = DemoOptions(
        out=out,
        clients=clients,
        rounds=rounds,
        method=method,
        seed=seed,
        alpha=alpha,
        train_examples=train_examples,
        fresh=fresh,
    )
    console = Console(stderr=as_json)
    report = _or_exit(lambda: run_demo(options, RunView(console)))
    if as_json:
        typer.echo(to_json(report), nl=False)
        return
    console.print(*to_tables(report), sep="\n")
    console.print(f"report, plot and adapter: {out}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def ask(
    image: Annotated[Path, typer.Option(help="Picture that the question is about.")],
    question: Annotated[str, typer.Option(help="The question.")],
    adapter: Annotated[Path, typer.Option(help="Adapter file, such as runs/demo/adapter.safetensors.")],
    model: Annotated[str, typer.Option(help="A preset's name, or a model's folder.")] = "nano",
    adapter_alpha: Annotated[float, typer.Option(help="AdapterConfig.alpha of the adapter's run.")] = 32.0,
    server: Annotated[str, typer.Option(help="host:port of a running LLM server; empty starts one.")] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Plaintext to --server.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM file of the CA.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of this client's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its private key.")] = None,
) -> None:
    """Asks the tuned model a question about a picture."""
    from fednano.cli.ask import Question
    from fednano.cli.ask import ask as answer
    from fednano.config import Security

    # A server of our own is on loopback and speaks plaintext.
    security = Security(insecure=insecure or not server, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
    asked = Question(
        image=image,
        question=question,
        adapter=adapter,
        model=model,
        adapter_alpha=adapter_alpha,
        server=server,
        security=security,
    )
    typer.echo(_or_exit(lambda: answer(asked)))


def _or_exit(work: Callable[[], ResultT]) -> ResultT:
    """The result of ``work``, or the exit code and the one message that its failure means."""
    try:
        return work()
    except KeyboardInterrupt:
        typer.echo("stopped; the same command continues the run", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except FednanoError as error:
        typer.echo(f"fednano: {error.message}", err=True)
        usage = isinstance(error, SettingsInvalid | ModelInvalid | ExamplesInvalid)
        raise typer.Exit(EXIT_USAGE if usage else EXIT_FAILED) from None


if __name__ == "__main__":
    main()
