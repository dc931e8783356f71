"""Two processes with half of each layer each compute what the whole model computes: outputs, gradients, decoding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fednano.model.manifest import Manifest, language_digest, write_manifest

pytestmark = pytest.mark.slow
PROCESS = Path(__file__).with_name("spread_process.py")
# Sums in another order: of the largest number.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    manifest = Manifest(model="t", family="llama", digest=language_digest(folder), hidden_size=32, vocab_size=50)
    write_manifest(manifest, folder)
    return folder


def test_two_processes_compute_what_one_computes(folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(PROCESS), str(folder)], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["share"] == 0.5
    assert len(found["worst"]) == 7
    assert all(worst < TOLERANCE for worst in found["worst"].values()), found
