"""The family ``nano``: 64 x 64 pictures, words as tokens, a language half with a hidden size of 128.

C: colour channels   H, W: height and width in pixels
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from fednano.errors import ModelInvalid
from fednano.model.connector import Connector
from fednano.model.manifest import Manifest
from fednano.model.parts import EdgeParts
from fednano.model.vision import NanoVisionEncoder
from fednano.prompt import LETTERS, Prompt

PAD, BOS, EOS, UNKNOWN, IMAGE = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"


class NanoConfig(BaseModel):
    """config.json of the edge half."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_side_px: int
    image_token_count: int
    vision_width: int
    vision_layer_count: int
    vision_head_count: int
    connector_width: int
    hidden_size: int
    vocab_size: int


class NanoEdgeModules(nn.Module):
    """The edge half's modules under the names that its weights have in model.safetensors."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.vision_encoder = NanoVisionEncoder(
            vision_width=config.vision_width,
            layer_count=config.vision_layer_count,
            head_count=config.vision_head_count,
            image_token_count=config.image_token_count,
        )
        self.connector = Connector(
            vision_width=config.vision_width,
            connector_width=config.connector_width,
            hidden_size=config.hidden_size,
        )
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class NanoProcessor:
    """The prompt is: first token, image placeholders, hint if any, question, choices if any, ``answer :``.

    All pictures stand in front, for the pretraining knew of one at most, and it stood there.
    """

    def __init__(self, tokenizer: Tokenizer, config: NanoConfig) -> None:
        self._tokenizer = tokenizer
        self._image_side_px = config.image_side_px
        self._image_token_count = config.image_token_count
        words: dict[str, int] = tokenizer.get_vocab()
        self.image_token_id = words[IMAGE]
        self.eos_token_id = words[EOS]
        self._bos_token_id = words[BOS]

    def pixels(self, image: Image.Image) -> Tensor:
        side_px = self._image_side_px
        if image.size != (side_px, side_px):
            image = image.convert("RGB").resize((side_px, side_px), Image.Resampling.BILINEAR)
        values_HWC = np.array(image.convert("RGB"), dtype=np.float32)
        return torch.from_numpy(values_HWC / 127.5 - 1).permute(2, 0, 1).contiguous()

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        options = ["options", ":", " , ".join(_choices(prompt))] if prompt.choices else []
        text = " ".join([*([prompt.hint] if prompt.hint else []), prompt.question, *options, "answer :"])
        placeholders = [self.image_token_id] * (self._image_token_count * prompt.image_count)
        return [self._bos_token_id, *placeholders, *self._encode(text)]

    def answer_ids(self, answer: str) -> list[int]:
        return [*self._encode(answer), self.eos_token_id]

    def text(self, ids: Sequence[int]) -> str:
        ids = list(ids)
        answer_ids = ids[: ids.index(self.eos_token_id)] if self.eos_token_id in ids else ids
        text: str = self._tokenizer.decode(answer_ids, skip_special_tokens=True)
        return text

    def _encode(self, text: str) -> list[int]:
        # Who writes "<eos>" into a question must not end the prompt with it.
        plain = re.sub("|".join(map(re.escape, SPECIAL_TOKENS)), " ", text.lower())
        ids: list[int] = self._tokenizer.encode(plain, add_special_tokens=False).ids
        return ids


def _choices(prompt: Prompt) -> list[str]:
    if not prompt.asks_letter:
        return list(prompt.choices)
    return [f"{letter} . {choice}" for letter, choice in zip(LETTERS, prompt.choices, strict=False)]


def load(folder: Path, manifest: Manifest) -> EdgeParts:
    config = _read_config(folder / CONFIG_FILE, manifest)
    modules = NanoEdgeModules(config)
    _load_weights(modules, folder / WEIGHTS_FILE)
    return EdgeParts(
        manifest=manifest,
        vision_encoder=modules.vision_encoder,
        connector=modules.connector,
        token_embedding=modules.token_embedding,
        head=modules.head,
        processor=NanoProcessor(_read_tokenizer(folder / TOKENIZER_FILE, config), config),
    )


def _read_config(path: Path, manifest: Manifest) -> NanoConfig:
    try:
        config = NanoConfig.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        message = f"{path} is missing or not the settings of a nano model ({error}); write the model's folder again"
        raise ModelInvalid(message, file=str(path)) from error
    if (config.hidden_size, config.vocab_size) != (manifest.hidden_size, manifest.vocab_size):
        message = f"{path} and manifest.json differ in hidden_size or vocab_size: they are of two models"
        raise ModelInvalid(message, file=str(path))
    return config


def _load_weights(modules: nn.Module, path: Path) -> None:
    """Weights are stored in bfloat16; every value of them is a float32, so that nothing is rounded here."""
    try:
        modules.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        message = f"{path} is missing or does not fit config.json beside it ({error}); write the model's folder again"
        raise ModelInvalid(message, file=str(path)) from error


def _read_tokenizer(path: Path, config: NanoConfig) -> Tokenizer:
    if not path.is_file():
        raise ModelInvalid(f"{path} is missing; write the model's folder again", file=str(path))
    tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.get_vocab_size() != config.vocab_size:
        message = f"{path} has {tokenizer.get_vocab_size()} words where config.json says {config.vocab_size}"
        raise ModelInvalid(message, file=str(path))
    return tokenizer
