"""Many clients on one GPU: LLaVA-1.5-7B's language half with random weights, batches of 8 sequences of 600 tokens.

What is told: the tokens a second of all clients to those of the same passes in one process, the share of the time that
the server's model is at work, and the most memory that the device had in use.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gpu_clients import GpuClients, long_pass
from benchmarks.round_report import conditions, conditions_line
from benchmarks.split_server import model_folder, serve
from benchmarks.split_steps import both_passes
from fednano.cli.processes import free_address
from fednano.model.language import load_language_model

SAMPLE_S = 0.05
WARM_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is run, and where."""

    model: str = "7B"
    device: str = "cuda"
    compute_type: str = "bfloat16"
    sequences: int = 8
    tokens: int = 600
    steps: int = 12

    @property
    def step_tokens(self) -> int:
        return self.sequences * self.tokens


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one number of clients; a token counts once for its step, both passes of it."""

    clients: int
    tokens_per_s: float
    in_process_tokens_per_s: float
    busy_share: float
    peak_bytes: int

    @property
    def ratio(self) -> float:
        return self.tokens_per_s / self.in_process_tokens_per_s


def in_process_tokens_per_s(folder: Path, load: Load) -> float:
    """The median over steps, each of both passes; the model's memory is free again afterwards."""
    model = load_language_model(folder / "server", getattr(torch, load.compute_type), load.device)
    step = long_pass(load.sequences, load.tokens, model.hidden_size, getattr(torch, load.compute_type))
    taken_s = []
    for _ in range(WARM_PASSES + load.steps):
        start_s = time.perf_counter()
        both_passes(model, [step])
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        taken_s.append(time.perf_counter() - start_s)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return load.step_tokens / statistics.median(taken_s[WARM_PASSES:])


def measure(folder: Path, scratch: Path, load: Load, clients: int, alone_tokens_per_s: float) -> Figures:
    """All clients at once, each its steps one after the other, from the moment that all are warm."""
    metrics = free_address()
    flags = ("--device", load.device, "--compute-type", load.compute_type, "--metrics-listen", metrics)
    with ExitStack() as stack:
        memory = stack.enter_context(device_memory())
        address = stack.enter_context(serve(folder, scratch, *flags, "--threads", "1"))
        group = stack.enter_context(GpuClients.started(folder, address, clients, load.sequences, load.tokens))
        group.wait_until_warm()
        before_s, start_s = busy_s(metrics), time.perf_counter()
        group.run(load.steps)
        wall_s = time.perf_counter() - start_s
        busy = busy_s(metrics) - before_s
    return Figures(
        clients=clients,
        tokens_per_s=clients * load.steps * load.step_tokens / wall_s,
        in_process_tokens_per_s=alone_tokens_per_s,
        busy_share=busy / wall_s,
        peak_bytes=memory.peak_bytes,
    )


def busy_s(metrics: str) -> float:
    """Seconds that the server's model was at work since its start."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "fednano_server_pass_seconds_sum")


@dataclass(kw_only=True)
class DeviceMemory:
    """The most that the device had in use, by all processes; 0 where there is no CUDA."""

    peak_bytes: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while torch.cuda.is_available() and not self.ended.wait(SAMPLE_S):
            free_bytes, total_bytes = torch.cuda.mem_get_info()
            self.peak_bytes = max(self.peak_bytes, total_bytes - free_bytes)


@contextmanager
def device_memory() -> Iterator[DeviceMemory]:
    memory = DeviceMemory()
    thread = threading.Thread(target=memory.watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        memory.ended.set()
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--clients", default="5,20", help="numbers of clients; commas between them")
    parser.add_argument("--steps", type=int, default=Load.steps, help="steps of each client")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("benchmarks.gpu: torch sees no CUDA device here; run it where there is one\n")
        return 2
    load = Load(steps=given.steps)
    with tempfile.TemporaryDirectory(prefix="fednano-gpu-") as scratch:
        folder = model_folder(load.model, Path(scratch), getattr(torch, load.compute_type))
        alone = in_process_tokens_per_s(folder, load)
        figures = [measure(folder, Path(scratch), load, int(count), alone) for count in given.clients.split(",")]
    if given.json:
        print(json.dumps({"conditions": conditions(), "figures": [asdict(one) for one in figures]}, indent=2))
        return 0
    print("| clients | tokens/s | in process | ratio | model at work | peak memory |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for one in figures:
        rates = f"{one.tokens_per_s:.0f} | {one.in_process_tokens_per_s:.0f} | {one.ratio:.2f}"
        print(f"| {one.clients} | {rates} | {one.busy_share:.0%} | {one.peak_bytes / 2**30:.1f} GiB |")
    print(f"{torch.cuda.get_device_name()}; {conditions_line()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
