"""What a family says of a checkpoint that is to be cut: which tensors go where, and the settings of both halves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn

from fednano.errors import ModelInvalid

Half = Literal["edge", "server"]
# Of the server half, as transformers' causal language models name them; and what they are called in the edge half.
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
EDGE_NAMES = ((EMBEDDING, "token_embedding.weight"), (HEAD, "head.weight"))


def said_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that are null, which says no more than to leave them out."""
    return {name: value for name, value in settings.items() if value is not None}


class SmallFiles(Protocol):
    """Where a checkpoint's files lie: a folder, or a repository on a hub."""

    def read(self, name: str) -> bytes | None:
        """A small file whole; None where there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Tensors whose name begins with ``prefix`` go to ``half``, where they have ``becomes`` in its place."""

    prefix: str
    half: Half
    becomes: str


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The first rule that fits a tensor is its rule; a tensor without one goes nowhere.

    ``edge_config`` goes through ``build`` (under the meta device) to modules, whose names and shapes are those of the
    edge half's weights. ``language_config`` is config.json of the server half.
    """

    family: str
    rules: tuple[Rule, ...]
    edge_config: Any
    build: Callable[[Any], nn.Module]
    language_config: Mapping[str, Any]
    template: str
    tied_head: bool


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Its settings and small files; the weights are read elsewhere."""

    name: str
    config: Mapping[str, Any]
    files: SmallFiles

    def json(self, name: str) -> dict[str, Any]:
        """A settings file, or {} where there is none."""
        content = self.files.read(name)
        if content is None:
            return {}
        try:
            found = json.loads(content)
        except ValueError as error:
            raise ModelInvalid(f"{self.name}: {name} is no JSON ({error})", file=name) from error
        return said_in(found) if isinstance(found, dict) else {}

    def need(self, name: str) -> bytes:
        content = self.files.read(name)
        if content is None:
            raise ModelInvalid(f"{self.name}: {name} is missing, and an edge half needs it", file=name)
        return content
