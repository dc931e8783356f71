"""`fednano params`: what a model costs the client, the server and the wire, without a weight of it."""

from dataclasses import asdict
from typing import Annotated

import typer

from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.output import Output
from fednano.costs.ledger import (
    Compute,
    Held,
    PaperAccounting,
    Traffic,
    Workload,
    compute,
    held,
    paper_accounting,
    traffic,
)
from fednano.costs.shapes import SHAPES, ModelShape
from fednano.errors import SettingsInvalid

ROWS = tuple[str, str]
FisherExamples = Annotated[
    int | None,
    typer.Option(min=0, help="Examples of a round's Fisher pass; fednano_ef has none: 0. (those of its steps)"),
]


def register(app: typer.Typer) -> None:
    app.command(epilog=EXIT_WORDS)(params)


def params(
    preset: Annotated[str, typer.Option(help=f"A model's shape: {', '.join(SHAPES)}.")] = "llava-1.5-7b",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a step.")] = 8,
    text_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a question and its answer.")] = 64,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 4,
    local_steps: Annotated[int, typer.Option(min=1, help="Steps of a client in a round.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a run.")] = 10,
    wire_bytes: Annotated[int, typer.Option(min=1, max=4, help="Bytes of an element on the wire.")] = 2,
    fisher_examples: FisherExamples = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")] = False,
) -> None:
    """Counts parameters, bytes and FLOPs as the paper does, and whole, from the model's shape alone."""
    work = Workload(
        rank=rank,
        batch_size=batch_size,
        text_tokens=text_tokens,
        answer_tokens=answer_tokens,
        local_steps=local_steps,
        rounds=rounds,
        wire_bytes=wire_bytes,
        fisher_examples=batch_size * local_steps if fisher_examples is None else fisher_examples,
    )
    shape = or_exit(lambda: _shape(preset), interrupted="stopped")
    paper, parts = paper_accounting(shape, rank), held(shape, rank)
    moved, spent = traffic(shape, work), compute(shape, work)
    output = Output(as_json=as_json)
    if as_json:
        facts = {"paper": _paper_facts(paper), "held": asdict(parts), "bytes": asdict(moved), "flops": asdict(spent)}
        output.facts({"preset": shape.name, "workload": asdict(work), **facts}, [])
        return
    _show(output, paper, parts, moved, spent)


def _shape(preset: str) -> ModelShape:
    if preset not in SHAPES:
        raise SettingsInvalid(f"--preset: {preset} is none of {', '.join(SHAPES)}")
    return SHAPES[preset]


def _paper_facts(paper: PaperAccounting) -> dict[str, object]:
    """With what the paper prints: millions and percent, to two places."""
    return {
        **asdict(paper),
        "client": f"{paper.client_parameters / 1e6:.2f} M",
        "clientPercent": f"{100 * paper.client_share:.2f} %",
        "upload": f"{paper.upload_parameters / 1e6:.2f} M",
        "uploadPercent": f"{100 * paper.upload_share:.2f} %",
    }


def _show(output: Output, paper: PaperAccounting, parts: Held, moved: Traffic, spent: Compute) -> None:
    facts = _paper_facts(paper)
    counted = [
        ("client holds", f"{facts['client']} = {facts['clientPercent']}"),
        ("uploads", f"{facts['upload']} = {facts['uploadPercent']}"),
    ]
    held_rows = [(name.replace("_", " "), f"{count / 1e6:,.2f} M") for name, count in asdict(parts).items()]
    byte_rows = [(name.replace("_", " "), f"{count / 1e6:,.2f} MB") for name, count in asdict(moved).items()]
    flop_rows = [
        ("client, a step", f"{spent.client_step / 1e9:,.2f} GFLOP"),
        ("client's encoder, an example, once", f"{spent.client_encoder / 1e9:,.2f} GFLOP"),
        ("server, a step", f"{spent.server_step / 1e9:,.2f} GFLOP"),
        ("server, Fisher information of a round", f"{spent.server_fisher_round / 1e9:,.2f} GFLOP"),
        ("server passes, a round's training", f"{spent.server_passes_per_round:,}"),
    ]
    sections: list[tuple[str, list[ROWS]]] = [
        ("as the paper counts", counted),
        ("parameters held", held_rows),
        ("bytes of one client, without framing", byte_rows),
        ("work of one client, attention's products left out", flop_rows),
    ]
    for title, rows in sections:
        typer.echo(f"\n{title}")
        output.pairs(rows)
