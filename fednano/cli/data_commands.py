"""`fednano data`: look through examples, score predictions, split them over clients, take them in from Parquet."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.output import Output
from fednano.errors import ExamplesInvalid

if TYPE_CHECKING:
    from fednano.data.census import SplitCensus
    from fednano.data.client_folders import ClientFolder

STOPPED = "stopped; nothing was written"
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of examples in any layout that is known.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing-images", help="Leave out examples that lack an image.")]

app = typer.Typer(no_args_is_help=True, help="Check, split and take in examples.", epilog=EXIT_WORDS)


@app.command(epilog=EXIT_WORDS)
def check(folder: Folder, allow_missing_images: AllowMissing = False, as_json: AsJson = False) -> None:
    """Reads every record and picture of a folder, and counts them by split, topic and type."""
    or_exit(lambda: _check(folder, allow_missing_images, Output(as_json=as_json)), interrupted="stopped")


@app.command(epilog=EXIT_WORDS)
def partition(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="Folder to make, with client-1 and on in it.")],
    clients: Annotated[int, typer.Option(min=1, help="Clients to split the examples over.")] = 5,
    alpha: Annotated[float, typer.Option(min=0.01, help="Of the Dirichlet split: small is less alike.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides who gets what.")] = 0,
    minimum_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Least part of an even share that each client has of each split.")
    ] = 0.3,
    allow_missing_images: AllowMissing = False,
    as_json: AsJson = False,
) -> None:
    """Splits a folder over clients, unevenly by topic, and draws who has what (topics.png)."""

    def work() -> None:
        # Here, for the other commands do not need what it imports.
        from fednano.cli.heat_map import write_heat_map
        from fednano.data.client_folders import write_client_folders
        from fednano.data.folder import open_folder

        made = write_client_folders(
            open_folder(folder),
            out,
            client_count=clients,
            alpha=alpha,
            seed=seed,
            minimum_share=minimum_share,
            allow_missing_images=allow_missing_images,
        )
        write_heat_map(out / "topics.png", made)
        _show_clients(made, out, Output(as_json=as_json))

    or_exit(work, interrupted=STOPPED)


@app.command("import", epilog=EXIT_WORDS)
def take_in(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A Parquet file, or a folder with some.")],
    out: Annotated[Path, typer.Option(help="Folder to make, with examples.jsonl in it.")],
    as_json: AsJson = False,
) -> None:
    """Takes in Parquet files as Hugging Face's datasets library writes them."""

    def work() -> None:
        # Here, for the other commands do not need what it imports.
        from fednano.data.parquet import import_parquet

        counts = import_parquet(source, out)
        rows = [(split, f"{count:,}") for split, count in counts.items()]
        Output(as_json=as_json).facts({"out": str(out), "examples": counts}, [("folder", str(out)), *rows])

    or_exit(work, interrupted=STOPPED)


@app.command(epilog=EXIT_WORDS)
def score(
    folder: Folder,
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help='JSON file with a text by id: {"1": "B", ...}.')
    ],
    split: Annotated[str, typer.Option(help="The split that the predictions are of.")] = "test",
    as_json: AsJson = False,
) -> None:
    """Scores predictions by the rules of the folder's set, with the breakdowns that its authors publish."""
    or_exit(lambda: _score(folder, predictions, split, Output(as_json=as_json)), interrupted="stopped")


def _score(folder: Path, file: Path, split: str, output: Output) -> None:
    # Here, for the other commands do not need what it imports.
    from fednano.data.folder import open_folder
    from fednano.data.json_file import read_object
    from fednano.data.official_scores import folder_scores

    opened, predictions = open_folder(folder), read_object(file)
    for pid, text in predictions.items():
        if not isinstance(text, str):
            raise ExamplesInvalid(f"{file}: the prediction of {pid} must be a text", file=str(file), pid=pid)
    known = {example.pid for example in opened.read(split)}
    scores = folder_scores(opened, split, predictions)
    counts = {"withoutPrediction": len(known - set(predictions)), "ofNoProblem": len(set(predictions) - known)}
    found = {name: {**asdict(one), "accuracy": one.accuracy} for name, one in scores.items()}
    rows = [("without a prediction, and so wrong", f"{counts['withoutPrediction']:,}")]
    rows += [("predictions of no problem", f"{counts['ofNoProblem']:,}")]
    output.facts({"split": split, **counts, "scores": found}, rows)
    if not output.as_json:
        typer.echo()
        cells = [(name, f"{one.correct:,}", f"{one.count:,}", f"{one.accuracy:.2%}") for name, one in scores.items()]
        output.table(("", "right", "of", "accuracy"), cells)


def _check(folder: Path, allow_missing_images: bool, output: Output) -> None:
    # Here, for the other commands do not need what it imports.
    from fednano.data.census import take_census
    from fednano.data.folder import open_folder

    found = take_census(open_folder(folder))
    lacking = sum(census.lacking for census in found.values())
    if lacking and not allow_missing_images:
        missing = sum(census.missing_images for census in found.values())
        message = (
            f"{folder}: {missing} images of {lacking} examples are missing; --allow-missing-images leaves those out"
        )
        raise ExamplesInvalid(message, file=str(folder), field="image")
    facts = {
        "examples": sum(census.examples for census in found.values()),
        "missingImages": sum(census.missing_images for census in found.values()),
        "splits": {split: asdict(census) for split, census in found.items()},
    }
    output.facts(facts, [("folder", str(folder)), ("examples", f"{facts['examples']:,}")])
    if not output.as_json:
        _show_census(found, output)


def _show_census(found: "dict[str, SplitCensus]", output: Output) -> None:
    names = list(found)
    typer.echo()
    rows = [[label, *(f"{getattr(found[name], field):,}" for name in names)] for label, field in _ROWS]
    for kind in ("tasks", "topics"):
        counts = {name: getattr(found[name], kind) for name in names}
        for value in sorted({value for each in counts.values() for value in each}):
            rows.append([f"{kind.removesuffix('s')} {value}", *(f"{counts[name].get(value, 0):,}" for name in names)])
    output.table(("", *names), rows)


_ROWS = (("examples", "examples"), ("images", "images"), ("missing images", "missing_images"))


def _show_clients(clients: "Sequence[ClientFolder]", out: Path, output: Output) -> None:
    if output.as_json:
        facts = [{**asdict(client), "path": str(client.path)} for client in clients]
        output.facts({"out": str(out), "clients": facts}, [])
        return
    splits = list(clients[0].examples)
    rows = [[str(client.path), *(f"{client.examples[split]:,}" for split in splits)] for client in clients]
    output.table(("client", *splits), rows)
