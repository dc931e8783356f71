"""The frozen pieces that an edge client holds, whatever the family of the model, and how they are loaded.

B: batch   C: colour channels   H, W: height and width in pixels   P: image tokens   E: vision width
D: hidden size   V: vocabulary   N: answer positions
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor, nn

from fednano.errors import ModelInvalid
from fednano.model.families.known import MODULES
from fednano.model.manifest import Manifest, read_manifest
from fednano.model.manifest import resolve_model as resolve_model
from fednano.prompt import Prompt


class Processor(Protocol):
    """Words and pixels to ids and tensors, and back: one implementation a family."""

    # Stands P times in a prompt, where the image's tokens go.
    image_token_id: int
    # The id that ends an answer.
    eos_token_id: int

    def pixels(self, image: Image.Image) -> Tensor:
        """One picture of any size and mode as float32 [C, H, W], scaled as the vision encoder wants it."""
        ...

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """All that comes before the answer, with the first token and P placeholders for each of its images."""
        ...

    def answer_ids(self, answer: str) -> list[int]:
        """The answer's tokens and the token that ends it."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Reads an answer up to the token that ends it. Undoes ``answer_ids`` for every answer in the vocabulary."""
        ...


@dataclass(frozen=True, kw_only=True)
class EdgeParts:
    """Float32 on the CPU, in eval mode, without gradients.

    ``vision_encoder`` is pixels_BCHW to features_BPE, ``connector`` features_BPE to image_embeds_BPD. ``head`` is
    hidden_states_ND to logits_NV, behind the final norm, which runs on the server; None: ask the server for logits.
    """

    manifest: Manifest
    vision_encoder: nn.Module
    connector: nn.Module
    token_embedding: nn.Embedding
    head: nn.Linear | None
    processor: Processor


def load_edge(folder: Path) -> EdgeParts:
    """Loads the edge half in ``folder``, by the family that its manifest names."""
    if not (folder / "manifest.json").is_file() and (folder / "edge" / "manifest.json").is_file():
        raise ModelInvalid(f"{folder} is a whole model: give its edge half, {folder / 'edge'}", file=str(folder))
    manifest = read_manifest(folder)
    parts = _loader_of(manifest.family, folder)(folder, manifest)
    for module in (parts.vision_encoder, parts.connector, parts.token_embedding, parts.head):
        if module is not None:
            module.eval().requires_grad_(False)
    return parts


Loader = Callable[[Path, Manifest], EdgeParts]


def _loader_of(family: str, folder: Path) -> Loader:
    if family not in MODULES:
        known = ", ".join(sorted(MODULES))
        message = f"{folder / 'manifest.json'} names the family {family}, which is not one of: {known}"
        raise ModelInvalid(message, file=str(folder / "manifest.json"), family=family)
    loader: Loader = import_module(MODULES[family]).load
    return loader
