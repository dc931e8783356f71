"""Pretrains the preset ``nano`` on procedural pictures and writes it to fednano/model/presets/nano.

Stage 0 trains the vision encoder to name the attributes of pictures of both domains, with separate heads for each
domain. So the encoder is NOT naive to domain B, the domain of the federation: it has seen such pictures with
attribute labels, though never a question or an answer about one. Stage 1 trains the connector and the language model
on questions, answers and captions of domain A alone, and is stopped half-way down its schedule; the settings say why.

Settings and log lie beside the modules, in tools/nano_pretraining. A killed run goes on from its last checkpoint.
What is promised: every step's pictures and questions depend on the seed and the step's number alone, and the learning
rate on the step's number, so that a resumed run equals an undisturbed one, and the same machine with the same
versions and thread count gives the same weights. Another machine, version or thread count rounds differently and
gives other weights.

    python tools/pretrain_nano.py --checkpoints build/nano
"""

import argparse
from pathlib import Path

import torch
from nano_pretraining.encoder_stage import train_encoder
from nano_pretraining.export import edge_config, export
from nano_pretraining.language_stage import log_accuracy, train_language_model
from nano_pretraining.log_file import log_to
from nano_pretraining.settings import read_settings
from nano_pretraining.vocabulary import new_tokenizer

from fednano.model.nano import NanoProcessor

_HERE = Path(__file__).parent


def main() -> None:
    arguments = _parse_arguments()
    settings = read_settings(arguments.settings)
    log = log_to(arguments.log)
    torch.set_num_threads(settings.thread_count)
    tokenizer = new_tokenizer()
    config = edge_config(settings.model, tokenizer.get_vocab_size())
    processor = NanoProcessor(tokenizer, config)
    encoder = train_encoder(settings, arguments.checkpoints, log)
    module = train_language_model(settings, encoder, processor, tokenizer.get_vocab(), arguments.checkpoints, log)
    digest = export(encoder, module, tokenizer, config, arguments.out)
    log(f"exported digest {digest}; what follows is the accuracy of the stored weights")
    log_accuracy(module, encoder, processor, settings, log)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pretrains the preset nano.")
    parser.add_argument("--settings", type=Path, default=_HERE / "nano_pretraining" / "settings.toml")
    parser.add_argument("--log", type=Path, default=_HERE / "nano_pretraining" / "pretraining.log")
    parser.add_argument("--checkpoints", type=Path, default=Path("build/nano"))
    parser.add_argument("--out", type=Path, default=_HERE.parent / "fednano" / "model" / "presets" / "nano")
    return parser.parse_args()


if __name__ == "__main__":
    main()
