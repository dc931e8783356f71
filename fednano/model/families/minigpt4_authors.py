"""The checkpoint that ``minigpt4`` cuts, made of the files that MiniGPT-4's authors say to fetch.

Those are EVA-CLIP's tower (eva_vit_g.pth), BLIP-2's Q-Former (blip2_pretrained_*.pth), the trained projection
(prerained_minigpt4_*.pth, so spelt) and a folder with Vicuna or Llama-2. Files that torch wrote are read without
running anything that is in them (``weights_only``); what is written is safetensors.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fednano.errors import ModelInvalid
from fednano.model.cutting.shards import INDEX_FILE, read_headers
from fednano.model.cutting.source import LocalFolder
from fednano.model.cutting.whole_folder import put_in_place
from fednano.model.families.minigpt4 import LLAMA2_TEMPLATE, VICUNA_TEMPLATE

ENCODER_FILE = "encoder.safetensors"
# The authors leave the last of EVA's 40 blocks out.
LAYER_COUNT = 39
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_RENAMED = (
    (r"^cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.attn\.qkv\.weight$", r"vision_model.encoder.layers.\1.self_attn.qkv.weight"),
    (r"^blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^query_tokens$", "query_tokens"),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^(Qformer\.bert\.encoder\.layer\.\d+\.\w*attention)\.self\.", r"\1.attention."),
    (r"^Qformer\.bert\.encoder\.", "qformer.encoder."),
    (r"^llama_proj\.", "language_projection."),
)
_ONLY_TEXT = re.compile(r"^Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.")


def convert_authors_files(
    *, vit: Path, qformer: Path, projection: Path, language: Path, out: Path, layer_count: int = LAYER_COUNT
) -> None:
    """Writes ``out``. The language model's shards are linked there, or copied to another file system.

    Raises ModelInvalid for a file that is missing or another one than it is said to be.
    """
    encoder = dict(_encoder(vit, qformer, projection, layer_count))
    language_config = LocalFolder(language).read("config.json")
    if language_config is None:
        raise ModelInvalid(f"{language} has no config.json: give the folder of Vicuna or Llama-2", file=str(language))
    places = read_headers(LocalFolder(language)).places
    config = _config(encoder, json.loads(language_config), layer_count)
    is_llama2_chat = "llama-2" in str(config["text_config"].get("_name_or_path", language.name)).lower()
    with put_in_place(out) as folder:
        save_file(encoder, folder / ENCODER_FILE, metadata={"format": "pt"})
        for file in {place.file for place in places.values()}:
            _link(language / file, folder / file)
        for name in _TOKENIZER_FILES:
            if (language / name).is_file():
                shutil.copyfile(language / name, folder / name)
        weight_map = {name: place.file for name, place in places.items()} | dict.fromkeys(encoder, ENCODER_FILE)
        (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2))
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        (folder / "chat_template.jinja").write_text(LLAMA2_TEMPLATE if is_llama2_chat else VICUNA_TEMPLATE)


def _encoder(vit: Path, qformer: Path, projection: Path, layer_count: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors by transformers' names. What only text goes through, and what is behind the last layer, is left."""
    tower = _read(vit)
    for name, tensor in [*tower.items(), *_read(qformer).items(), *_read(projection).items()]:
        block = re.match(r"blocks\.(\d+)\.", name)
        renamed = _renamed(name)
        if renamed and not (block and int(block[1]) >= layer_count) and not _ONLY_TEXT.match(name):
            yield renamed, tensor.clone().contiguous()
    for number in range(layer_count):
        biases = [tower.get(f"blocks.{number}.attn.{which}_bias") for which in ("q", "v")]
        if biases[0] is None or biases[1] is None:
            raise ModelInvalid(f"{vit} is no EVA-CLIP tower: blocks.{number}.attn.q_bias is missing", file=str(vit))
        bias = torch.cat([biases[0], torch.zeros_like(biases[0]), biases[1]])
        yield f"vision_model.encoder.layers.{number}.self_attn.qkv.bias", bias


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            # The Q-Former's attention has two names to change.
            return renamed.replace("Qformer.bert.", "qformer.")
    return ""


def _config(encoder: Mapping[str, Tensor], language: dict[str, Any], layer_count: int) -> dict[str, Any]:
    """Sizes as the tensors have them; the numbers of heads as the authors' code does, 88 and 64 wide."""
    try:
        patches = encoder["vision_model.embeddings.patch_embedding.weight"]
        positions = encoder["vision_model.embeddings.position_embedding"]
        first_mlp = encoder["vision_model.encoder.layers.0.mlp.fc1.weight"]
        queries = encoder["query_tokens"]
        qformer_mlp = encoder["qformer.encoder.layer.0.intermediate_query.dense.weight"]
        crossing = encoder["qformer.encoder.layer.0.crossattention.attention.key.weight"]
    except KeyError as error:
        raise ModelInvalid(
            f"the files lack {error.args[0]}: give EVA-CLIP's tower, BLIP-2's Q-Former, the projection"
        ) from error
    patch_px, side = patches.shape[-1], int((positions.shape[1] - 1) ** 0.5)
    layers = {int(found[1]) for name in encoder if (found := re.match(r"qformer\.encoder\.layer\.(\d+)\.", name))}
    return {
        "architectures": ["MiniGPT4ForConditionalGeneration"],
        "vision_config": {
            "hidden_size": patches.shape[0],
            "intermediate_size": first_mlp.shape[0],
            "num_hidden_layers": layer_count,
            "num_attention_heads": max(1, patches.shape[0] // 88),
            "image_size": side * patch_px,
            "patch_size": patch_px,
        },
        "qformer_config": {
            "hidden_size": queries.shape[2],
            "intermediate_size": qformer_mlp.shape[0],
            "num_hidden_layers": len(layers),
            "num_attention_heads": max(1, queries.shape[2] // 64),
            "encoder_hidden_size": crossing.shape[1],
        },
        "num_query_tokens": queries.shape[1],
        "text_config": language,
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, UnpicklingError, ValueError) as error:
        raise ModelInvalid(f"{path} cannot be read as weights that torch wrote: {error}", file=str(path)) from error
    found = found.get("model", found) if isinstance(found, dict) else {}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
