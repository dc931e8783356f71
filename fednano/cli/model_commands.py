"""`fednano model`: models, before anything is trained. It needs no service."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.cli.output import Output, megabytes

if TYPE_CHECKING:
    from fednano.model.cutting.split import SplitModel

app = typer.Typer(no_args_is_help=True, help="Cut models in two.", epilog=EXIT_WORDS)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")]


@app.command("split", epilog=EXIT_WORDS)
def model_split(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder, or owner/name on the hub.")],
    out: Annotated[Path, typer.Option(help="Folder to write edge/ and server/ into.")],
    only: Annotated[
        Literal["edge", "server"] | None,
        typer.Option(help="One half alone. For the edge's, the language model is never fetched."),
    ] = None,
    with_head: Annotated[
        bool, typer.Option("--with-head", help="Give the edge the head: fewer bytes on the wire for a larger half.")
    ] = False,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit on the hub.")] = "",
    as_json: AsJson = False,
) -> None:
    """Cuts a checkpoint into what an edge holds and what the server does. Nothing is there before all of it is."""

    def split() -> None:
        # Here, for the other commands do not need what it imports.
        from fednano.model.cutting.source import open_source
        from fednano.model.cutting.split import split_model

        source = open_source(model, revision=revision)
        _show(split_model(source, out, only=only, with_head=with_head), Output(as_json=as_json))

    or_exit(split, interrupted="stopped; nothing was written")


@app.command("convert-minigpt4", epilog=EXIT_WORDS)
def model_convert_minigpt4(
    vit: Annotated[Path, typer.Option(help="EVA-CLIP's tower, eva_vit_g.pth.")],
    qformer: Annotated[Path, typer.Option(help="BLIP-2's Q-Former, blip2_pretrained_flant5xxl.pth.")],
    projection: Annotated[Path, typer.Option(help="The trained projection, such as prerained_minigpt4_7b.pth.")],
    language: Annotated[Path, typer.Option(help="Folder of Vicuna or Llama-2, in safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder to write a checkpoint into, for fednano model split.")],
    as_json: AsJson = False,
) -> None:
    """Makes one checkpoint of the files that MiniGPT-4's authors say to fetch."""

    def convert() -> None:
        # Here, for the other commands do not need what it imports.
        from fednano.model.families.minigpt4_authors import convert_authors_files

        convert_authors_files(vit=vit, qformer=qformer, projection=projection, language=language, out=out)
        Output(as_json=as_json).facts({"folder": str(out)}, [("written to", str(out))])

    or_exit(convert, interrupted="stopped; nothing was written")


def _show(found: "SplitModel", output: Output) -> None:
    first = next(iter(found.manifests.values()))
    facts = {
        "model": first.model,
        "family": first.family,
        "digest": first.digest,
        "hiddenSize": first.hidden_size,
        "vocabSize": first.vocab_size,
        "dtype": first.dtype,
        **{f"{half}Bytes": size for half, size in found.weight_bytes.items()},
        "folder": str(found.folder),
    }
    sizes = [(f"{half} half", megabytes(size)) for half, size in found.weight_bytes.items()]
    output.facts(
        facts,
        [
            ("model", first.model),
            ("family", first.family),
            ("digest", first.digest),
            ("hidden size", f"{first.hidden_size}, {first.vocab_size} tokens, {first.dtype}"),
            *sizes,
            ("written to", str(found.folder)),
        ],
    )
