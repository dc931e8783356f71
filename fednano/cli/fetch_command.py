"""`fednano model fetch`: a preset's weights, from where their authors published them."""

from pathlib import Path
from typing import Annotated

import typer

from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.output import Output


def register(app: typer.Typer) -> None:
    app.command("fetch", epilog=EXIT_WORDS)(model_fetch)


def model_fetch(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="smol.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to make, if not the preset's own.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")] = False,
) -> None:
    """Downloads a preset with this Python's pip and makes its two halves. Leaves one that is there as it is."""

    def fetch() -> None:
        # Here, for the other commands do not need what it imports.
        from fednano.errors import SettingsInvalid
        from fednano.model.fetched import FETCHED, fetched_folder
        from fednano.model.manifest import read_manifest

        if preset not in FETCHED:
            raise SettingsInvalid(f"{preset} is no preset that is fetched; these are: {', '.join(FETCHED)}")
        from fednano.model.fetching.smol import fetch_smol

        folder = out if out is not None else fetched_folder(preset)
        is_new = fetch_smol(folder, lambda line: typer.echo(line, err=True))
        digest = read_manifest(folder / "edge").digest
        Output(as_json=as_json).facts(
            {"model": preset, "digest": digest, "folder": str(folder), "fetched": is_new},
            [("model", preset), ("digest", digest), ("folder", str(folder) + ("" if is_new else " (there already)"))],
        )

    or_exit(fetch, interrupted="stopped; nothing was written")
