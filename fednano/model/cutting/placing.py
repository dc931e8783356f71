"""Which tensors each half gets, whether all are there, and the digest that both halves share."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fednano.errors import ModelInvalid
from fednano.model.cutting.cut import EDGE_NAMES, EMBEDDING, HEAD, Cut, Half
from fednano.model.cutting.shards import TORCH_TYPES, TensorPlace, Weights

SAMPLE_BYTES = 256

Places = Mapping[str, TensorPlace]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where the tensors of the checkpoint lie, by the names that they have in each half."""

    edge: Places
    server: Places

    @property
    def embedding(self) -> TensorPlace:
        if EMBEDDING not in self.server or len(self.server[EMBEDDING].shape) != 2:
            raise ModelInvalid(f"the checkpoint lacks the token embedding ({EMBEDDING})", tensor=EMBEDDING)
        return self.server[EMBEDDING]


def place(weights: Weights, cut: Cut) -> Placed:
    """Every tensor by the first rule that fits it. The head and the embedding go by their server's names."""
    halves: dict[Half, dict[str, TensorPlace]] = {"edge": {}, "server": {}}
    for name, where in weights.places.items():
        rule = next((rule for rule in cut.rules if name.startswith(rule.prefix)), None)
        if rule is not None:
            halves[rule.half].setdefault(rule.becomes + name.removeprefix(rule.prefix), where)
    if cut.tied_head:
        halves["server"].pop(HEAD, None)
    return Placed(edge=halves["edge"], server=halves["server"])


def edge_places(placed: Placed, modules: nn.Module) -> Places:
    """Those that ``modules`` have, the token embedding and the head among them. Raises ModelInvalid where one lacks."""
    # From the language model's tensors, to those of the edge.
    shared = {edge_name: placed.server[name] for name, edge_name in EDGE_NAMES if name in placed.server}
    expected = {name: tuple(tensor.shape) for name, tensor in modules.state_dict().items()}
    return _all_of(expected, {**placed.edge, **shared}, "an edge half")


def server_places(placed: Placed, expected: Shapes, *, tied_head: bool) -> Places:
    """Those of ``expected``; without the token embedding, which only a tied head needs."""
    return _all_of(
        {name: expected[name] for name in expected if tied_head or name != EMBEDDING}, placed.server, "a server half"
    )


def _all_of(expected: Shapes, found: Places, what: str) -> Places:
    missing = sorted(expected.keys() - found.keys())
    if missing:
        names = ", ".join(missing[:5])
        message = f"the checkpoint lacks {len(missing)} of the {len(expected)} tensors that {what} needs: {names}"
        raise ModelInvalid(message, tensor=missing[0])
    for name, shape in expected.items():
        if found[name].dtype not in TORCH_TYPES:
            message = f"the tensor {name} is of type {found[name].dtype}: give the checkpoint before it was quantized"
            raise ModelInvalid(message, tensor=name)
        if found[name].shape != shape:
            message = f"the tensor {name} is {list(found[name].shape)}, where config.json makes it {list(shape)}"
            raise ModelInvalid(message, tensor=name)
    return {name: found[name] for name in expected}


def edge_modules(cut: Cut, edge_config: object) -> nn.Module:
    """For their names and shapes: they hold no numbers."""
    with torch.device("meta"):
        return cut.build(edge_config)


def common_digest(weights: Weights, placed: Placed, cut: Cut) -> str:
    """The SHA-256 over the language model's settings and, of every tensor of either half, its name, type and shape and
    the bytes in its middle: so that it can be had without reading, or downloading, the weights.

    It tells two checkpoints apart, also two that were trained from the same one, for training changes every tensor. It
    does not find a damaged byte (the manifest's ``files`` do), nor somebody who means to deceive.
    """
    settings = {name: value for name, value in cut.language_config.items() if name != "_name_or_path"}
    digest = hashlib.sha256(json.dumps([cut.family, settings], sort_keys=True).encode())
    halves: tuple[tuple[Half, Places], ...] = (("edge", placed.edge), ("server", placed.server))
    for half, places in halves:
        for name, where in sorted(places.items()):
            digest.update(json.dumps([half, name, where.dtype, where.shape]).encode())
            length = min(SAMPLE_BYTES, where.size_bytes)
            digest.update(weights.piece(where, (where.size_bytes - length) // 2, length))
    return digest.hexdigest()
