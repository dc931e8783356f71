"""Cutting a checkpoint into an edge and a server half: read once, written beside, and put in its place whole."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fednano.errors import ModelInvalid
from fednano.model.cutting.cut import Checkpoint, Cut, Half, said_in
from fednano.model.cutting.half_file import write_weights
from fednano.model.cutting.language_shapes import language_shapes
from fednano.model.cutting.placing import Placed, Places, common_digest, edge_modules, edge_places, place, server_places
from fednano.model.cutting.shards import TORCH_TYPES, Weights, read_headers
from fednano.model.cutting.source import Source
from fednano.model.cutting.whole_folder import check_free, put_in_place
from fednano.model.families.edge_folder import (
    CONFIG_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    processor_of,
)
from fednano.model.families.known import ARCHITECTURES, MODULES
from fednano.model.manifest import Manifest, read_manifest, write_manifest

HALVES: tuple[Half, ...] = ("edge", "server")


@dataclass(frozen=True, kw_only=True)
class SplitModel:
    """What was written, and how many bytes of weights each half has."""

    folder: Path
    manifests: Mapping[Half, Manifest]
    weight_bytes: Mapping[Half, int]


def split_model(source: Source, out: Path, *, only: Half | None = None, with_head: bool = False) -> SplitModel:
    """Writes ``out``/edge and ``out``/server, or one of them. Nothing is there before all of it is.

    ``with_head`` gives the edge the head, too, where it is not the token embedding's and comes by itself. Raises
    ModelInvalid for what cannot be cut, and where the other half is there already but is another model's.
    """
    wanted = HALVES if only is None else (only,)
    check_free(out, wanted)
    checkpoint, cut = _cut_of(source)
    weights = read_headers(source)
    placed = place(weights, cut)
    config = _edge_config(cut, placed, with_head)
    tensors: dict[Half, Places] = {"edge": edge_places(placed, edge_modules(cut, config))}
    if "server" in wanted:
        tensors["server"] = server_places(placed, language_shapes(cut.language_config), tied_head=cut.tied_head)
    source.will_read(_mostly_read(weights, [tensors[half] for half in wanted]))
    manifest = _manifest(cut, placed, config, common_digest(weights, placed, cut), source.name)
    _check_other_half(out, wanted, manifest)
    small_files = {"edge": _edge_files(checkpoint, cut, config), "server": _server_files(cut, manifest)}
    manifests = {}
    with put_in_place(out, wanted) as folder:
        for half in wanted:
            (folder / half).mkdir()
            manifests[half] = _write_half(folder / half, manifest, small_files[half], weights, tensors[half])
    sizes = {half: sum(each.size_bytes for each in tensors[half].values()) for half in wanted}
    return SplitModel(folder=out, manifests=manifests, weight_bytes=sizes)


def _cut_of(source: Source) -> tuple[Checkpoint, Cut]:
    content = source.read(CONFIG_FILE)
    if content is None:
        raise ModelInvalid(f"{source.name} has no {CONFIG_FILE}: give a checkpoint's folder", file=CONFIG_FILE)
    try:
        config = said_in(json.loads(content))
        names = [str(name) for name in config.get("architectures", [])]
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelInvalid(f"{source.name}: {CONFIG_FILE} is no settings file ({error})", file=CONFIG_FILE) from error
    family = next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)
    if family is None:
        known = ", ".join(sorted(ARCHITECTURES))
        message = (
            f"{source.name} is of the architecture {', '.join(names) or '(none)'}; one of these can be cut: {known}"
        )
        raise ModelInvalid(message, file=CONFIG_FILE, architecture=", ".join(names))
    checkpoint = Checkpoint(name=source.name, config=config, files=source)
    make_cut: Callable[[Checkpoint], Cut] = import_module(MODULES[family]).cut
    try:
        return checkpoint, make_cut(checkpoint)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        message = f"{source.name}: its settings are not such as {family} has: {_why(error)}"
        raise ModelInvalid(message, model=source.name) from error


def _why(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _edge_config(cut: Cut, placed: Placed, with_head: bool) -> Any:
    vocab_size, hidden_size = placed.embedding.shape
    head = "tied" if cut.tied_head else "own" if with_head else "absent"
    return cut.edge_config.model_copy(update={"hidden_size": hidden_size, "vocab_size": vocab_size, "head": head})


def _manifest(cut: Cut, placed: Placed, config: Any, digest: str, model: str) -> Manifest:
    return Manifest(
        model=model,
        family=cut.family,
        digest=digest,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        dtype=TORCH_TYPES[placed.embedding.dtype],
    )


def _edge_files(checkpoint: Checkpoint, cut: Cut, config: Any) -> dict[str, bytes]:
    """What is wrong with words is told now, and not to each client that loads the half."""
    tokenizer, template = checkpoint.need(TOKENIZER_FILE), cut.template.encode()
    processor_of(tokenizer, template, config)
    return {
        CONFIG_FILE: config.model_dump_json(indent=2).encode() + b"\n",
        TOKENIZER_FILE: tokenizer,
        TEMPLATE_FILE: template,
    }


def _server_files(cut: Cut, manifest: Manifest) -> dict[str, bytes]:
    config = {**cut.language_config, "dtype": manifest.dtype}
    return {CONFIG_FILE: json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"}


def _write_half(
    folder: Path, manifest: Manifest, small_files: Mapping[str, bytes], weights: Weights, places: Places
) -> Manifest:
    digests = {}
    for name, content in small_files.items():
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    digests[WEIGHTS_FILE] = write_weights(folder / WEIGHTS_FILE, weights, places)
    whole = manifest.model_copy(update={"files": digests})
    write_manifest(whole, folder)
    return whole


def _mostly_read(weights: Weights, halves: list[Places]) -> list[str]:
    """The shards of which more than half goes into a half."""
    wanted = {each for half in halves for each in half.values()}
    read: dict[str, int] = {}
    for each in wanted:
        read[each.file] = read.get(each.file, 0) + each.size_bytes
    return sorted(file for file, size in read.items() if 2 * size > weights.source.size_bytes(file))


def _check_other_half(out: Path, wanted: tuple[Half, ...], manifest: Manifest) -> None:
    for half in HALVES:
        if half in wanted or not (out / half).exists():
            continue
        other = read_manifest(out / half)
        if other.digest != manifest.digest:
            message = (
                f"{out / half} is of the model {other.digest}, {manifest.model} is {manifest.digest}: the halves would "
                f"not belong together; name another folder"
            )
            raise ModelInvalid(
                message, file=str(out / half), expected_digest=other.digest, actual_digest=manifest.digest
            )
