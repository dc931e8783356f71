"""An edge half as it lies in a folder, whatever its family: settings, weights, tokenizer, chat template.

B: batch   C: colour channels   H, W: height and width in pixels   P: image tokens   E: vision width
D: hidden size   V: vocabulary
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fednano.errors import ModelInvalid
from fednano.model.families.chat import ChatConfig, ChatProcessor, read_tokenizer
from fednano.model.families.picture import PictureConfig
from fednano.model.manifest import Manifest, check_files
from fednano.model.parts import EdgeParts

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TOKENIZER_FILE, TEMPLATE_FILE = "tokenizer.json", "chat_template.jinja"


class EdgeConfig(BaseModel):
    """config.json of an edge half. ``head``: not held, a tensor of its own, or the token embedding's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int
    vocab_size: int
    head: Literal["absent", "own", "tied"] = "absent"
    chat: ChatConfig
    picture: PictureConfig


class EdgeModules(nn.Module):
    """The edge half's modules under the names that its weights have in model.safetensors.

    ``vision_encoder`` is pixels_BCHW to features_BPE, ``connector`` features_BPE to image_embeds_BPD.
    """

    def __init__(self, vision_encoder: nn.Module, connector: nn.Module, config: EdgeConfig) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.connector = connector
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if config.head == "own" else None

    def head_of(self, config: EdgeConfig) -> nn.Linear | None:
        if config.head != "tied":
            return self.head
        with torch.device("meta"):
            head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        head.weight = self.token_embedding.weight
        return head


ConfigT = TypeVar("ConfigT", bound=EdgeConfig)
Build = Callable[[ConfigT], EdgeModules]


def load_edge_folder(folder: Path, manifest: Manifest, config_class: type[ConfigT], build: Build[ConfigT]) -> EdgeParts:
    """The parts that ``build`` makes of the folder's settings, with the folder's weights."""
    check_files(folder, manifest)
    config = _read_config(folder / CONFIG_FILE, manifest, config_class)
    with torch.device("meta"):
        modules = build(config)
    _load_weights(modules, folder / WEIGHTS_FILE)
    return EdgeParts(
        manifest=manifest,
        vision_encoder=modules.vision_encoder,
        connector=modules.connector,
        token_embedding=modules.token_embedding,
        head=modules.head_of(config),
        processor=_processor(folder, config),
    )


def _read_config(path: Path, manifest: Manifest, config_class: type[ConfigT]) -> ConfigT:
    try:
        config = config_class.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        message = f"{path} is missing or not the settings of a {manifest.family} model ({error}); cut the model again"
        raise ModelInvalid(message, file=str(path)) from error
    if (config.hidden_size, config.vocab_size) != (manifest.hidden_size, manifest.vocab_size):
        message = f"{path} and manifest.json differ in hidden_size or vocab_size: they are of two models"
        raise ModelInvalid(message, file=str(path))
    return config


def _load_weights(modules: nn.Module, path: Path) -> None:
    """One tensor after the other, as float32, so that no more than one of another type is there at one time."""
    try:
        with safe_open(path, framework="pt") as file:
            weights: dict[str, Tensor] = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        modules.load_state_dict(weights, assign=True)
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        message = f"{path} is missing or does not fit config.json beside it ({error}); cut the model again"
        raise ModelInvalid(message, file=str(path)) from error


def _processor(folder: Path, config: EdgeConfig) -> ChatProcessor:
    for name in (TOKENIZER_FILE, TEMPLATE_FILE):
        if not (folder / name).is_file():
            raise ModelInvalid(f"{folder / name} is missing; cut the model again", file=str(folder / name))
    return processor_of((folder / TOKENIZER_FILE).read_bytes(), (folder / TEMPLATE_FILE).read_bytes(), config)


def processor_of(tokenizer: bytes, template: bytes, config: EdgeConfig) -> ChatProcessor:
    """Of the content of an edge half's files. Raises ModelInvalid where they do not fit its settings."""
    return ChatProcessor(read_tokenizer(tokenizer), template.decode(), config.chat, config.picture)
