"""The commands of ``fednano``. Their exit codes are in ``exits.py``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fednano.cli import (
    adapter_commands,
    audit_commands,
    certs_commands,
    client_commands,
    create_command,
    data_commands,
    demo_command,
    examples_command,
    experiment_command,
    fetch_command,
    model_commands,
    params_command,
    round_commands,
    run_commands,
)
from fednano.cli.cautions import caution
from fednano.cli.commands import operator_command
from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.status_command import status
from fednano.config import Security

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    # A trace of ours must not show what is in a command's variables: tokens, questions.
    pretty_exceptions_show_locals=False,
    help="Federated tuning of a frozen multimodal model.",
    epilog=EXIT_WORDS,
)
create_command.register(run_commands.app)
fetch_command.register(model_commands.app)
app.add_typer(run_commands.app, name="run")
app.add_typer(round_commands.app, name="round")
app.add_typer(client_commands.app, name="client")
app.add_typer(adapter_commands.app, name="adapter")
app.add_typer(audit_commands.app, name="audit")
app.add_typer(certs_commands.app, name="certs")
app.add_typer(examples_command.app, name="examples")
app.add_typer(data_commands.app, name="data")
app.add_typer(model_commands.app, name="model")
operator_command(app, "status")(status)
params_command.register(app)
demo_command.register(app)
experiment_command.register(app)


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
    tls_crl: Annotated[Path | None, typer.Option(help="PEM file of the revoked certificates.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")] = False,
) -> None:
    """Asks the tuned model a question about a picture."""
    # A server of our own is on loopback and speaks plaintext.
    security = Security(
        insecure=insecure or not server, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, tls_crl=tls_crl
    )

    def answer() -> str:
        # Here, for the other commands do not need what it imports.
        from fednano.cli.ask import Question
        from fednano.cli.ask import ask as answer_to

        if server:
            caution(insecure, tls_cert, server)
        asked = Question(
            image=image,
            question=question,
            adapter=adapter,
            model=model,
            adapter_alpha=adapter_alpha,
            server=server,
            security=security,
        )
        return answer_to(asked)

    found = or_exit(answer, interrupted="stopped")
    typer.echo(json.dumps({"answer": found}) if as_json else found)
