"""An LLM server in a process of its own, over a random model of a chosen size, and sessions on it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fednano.config import Security
from fednano.model.manifest import Manifest, language_digest, resolve_model, write_manifest

REPOSITORY = Path(__file__).parent.parent
# A large model's digest alone takes a while.
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
PLAINTEXT = Security(insecure=True)
# Layers, width, inner width, heads, words.
SIZES = {
    "tiny": (2, 64, 96, 4, 50),
    "5M": (5, 256, 704, 8, 2000),
    "30M": (8, 512, 1408, 8, 4000),
    "110M": (12, 768, 2048, 12, 16000),
    # The language half of LLaVA-1.5-7B.
    "7B": (32, 4096, 11008, 32, 32064),
}


def model_folder(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The preset's folder, or a new one with a Llama of random weights of about so many parameters."""
    if name not in SIZES:
        return resolve_model(name)
    layers, width, inner, heads, words = SIZES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
    )
    half = folder / "server"
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(half)
    manifest = Manifest(model=name, family="llama", digest=language_digest(half), hidden_size=width, vocab_size=words)
    write_manifest(manifest, half)
    return folder


@contextmanager
def serve(folder: Path, scratch: Path, *flags: str) -> Iterator[str]:
    """The address of a server that ends with the block."""
    with serve_process(folder, scratch, *flags) as (address, _):
        yield address


@contextmanager
def serve_process(folder: Path, scratch: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """The same with the number of its process."""
    ready = scratch / "address"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "services.server", "--insecure", "--model", str(folder), "--log-level", "WARNING"]
    process = subprocess.Popen([*command, "--ready-file", str(ready), *flags], cwd=REPOSITORY)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start (exit {process.poll()})")
            time.sleep(0.05)
        yield ready.read_text().strip(), process.pid
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)
