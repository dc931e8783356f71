"""Writes the two halves of the trained model, in bfloat16."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from fednano.model.manifest import Manifest, language_digest, write_manifest
from fednano.model.nano import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, NanoConfig
from fednano.model.vision import NanoVisionEncoder
from nano_pretraining.language_stage import ConnectedLanguageModel
from nano_pretraining.settings import ModelSettings


def edge_config(model: ModelSettings, vocab_size: int) -> NanoConfig:
    return NanoConfig(
        image_side_px=model.image_side_px,
        image_token_count=model.image_token_count,
        vision_width=model.vision_width,
        vision_layer_count=model.vision_layer_count,
        vision_head_count=model.vision_head_count,
        connector_width=model.connector_width,
        hidden_size=model.hidden_size,
        vocab_size=vocab_size,
    )


def export(
    encoder: NanoVisionEncoder, module: ConnectedLanguageModel, tokenizer: Tokenizer, config: NanoConfig, folder: Path
) -> str:
    """Replaces edge/ and server/ in ``folder`` and returns the language half's digest."""
    edge, server = folder / "edge", folder / "server"
    for half in (edge, server):
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
    _write_server(module, server)
    _write_edge(encoder, module, tokenizer, config, edge)
    digest = language_digest(server)
    manifest = Manifest(
        model="nano", family="nano", digest=digest, hidden_size=config.hidden_size, vocab_size=config.vocab_size
    )
    write_manifest(manifest, edge)
    write_manifest(manifest, server)
    for path in folder.glob("*/*"):
        path.chmod(0o644)
    return digest


def _write_server(module: ConnectedLanguageModel, folder: Path) -> None:
    language_model = module.language_model.to(torch.bfloat16)
    language_model.save_pretrained(folder)
    # Decoding is the client's; this folder says nothing about it.
    (folder / "generation_config.json").unlink()
    # Back to float32 with the stored values: the edge half is cut from these.
    module.language_model.to(torch.float32)


def _write_edge(
    encoder: NanoVisionEncoder, module: ConnectedLanguageModel, tokenizer: Tokenizer, config: NanoConfig, folder: Path
) -> None:
    tensors = {f"vision_encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    tensors |= {f"connector.{name}": tensor for name, tensor in module.connector.state_dict().items()}
    tensors["token_embedding.weight"] = module.language_model.model.embed_tokens.weight
    tensors["head.weight"] = module.language_model.lm_head.weight
    save_file({name: _stored(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n")
    tokenizer.save(str(folder / TOKENIZER_FILE))


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.bfloat16).contiguous()
