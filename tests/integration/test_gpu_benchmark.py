"""The GPU's benchmark does what it says, tried with a tiny model on the CPU; without CUDA it says so and ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
TRIAL = """
import sys, torch
from pathlib import Path
from benchmarks.gpu import Load, in_process_tokens_per_s, measure
from benchmarks.split_server import model_folder
torch.set_num_threads(1)
load = Load(model="tiny", device="cpu", compute_type="bfloat16", sequences=2, tokens=40, steps=2)
scratch = Path(sys.argv[1])
folder = model_folder(load.model, scratch, torch.bfloat16)
figures = measure(folder, scratch, load, 2, in_process_tokens_per_s(folder, load))
assert figures.clients == 2 and figures.peak_bytes == 0
assert 0 < figures.busy_share <= 1, figures
assert 0 < figures.tokens_per_s and 0 < figures.ratio, figures
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="here the benchmark itself can run")
def test_a_tiny_model_on_the_cpu_gets_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRIAL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=110)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_cuda_it_says_so_and_ends() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    # Libraries may have said things before.
    assert done.stderr.endswith("benchmarks.gpu: torch sees no CUDA device here; run it where there is one\n")
