"""A step over gRPC on loopback against the same step in one process: one client, 8 sequences of 40 to 80 tokens.

The server keeps the graph until the backward pass, or of it only each layer's inputs, whose layers it computes again,
or, with no memory for graphs, does the forward pass again.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.round_report import conditions, conditions_line
from benchmarks.split_server import PLAINTEXT, model_folder, serve
from benchmarks.split_steps import both_passes, ragged_passes, train
from fednano.model.language import LanguageModel, load_language_model
from fednano.rpc.channels import open_channel
from fednano.split.session import Pass, SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.v1.split_service_pb2_grpc import SplitServiceStub

# How a server keeps graphs: whole, their layers' inputs alone, or not at all.
WAYS = (
    (),
    ("--activation-checkpointing", "on"),
    ("--graph-memory-bytes", "0", "--activation-checkpointing", "off"),
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Seconds of a step, for each repeat."""

    model: str
    threads: int
    tokens: int
    in_process_s: list[float]
    retained_s: list[float]
    layers_s: list[float]
    recomputed_s: list[float]

    def ratio(self, taken_s: Sequence[float]) -> float:
        """The median over the repeats of the ratio within one: what disturbs a repeat disturbs all that race in it."""
        return statistics.median(ours / plain for ours, plain in zip(taken_s, self.in_process_s, strict=True))


async def race(
    addresses: Sequence[str], model: LanguageModel, step: Pass, repeats: int, steps: int
) -> list[list[float]]:
    """Seconds of a step in process, then by address, for each repeat."""
    async with AsyncExitStack() as stack:
        sessions = []
        for address in addresses:
            channel = await stack.enter_async_context(open_channel(address, PLAINTEXT))
            terms = SessionTerms(manifest=model.manifest, run="runs/split", peer=address)
            sessions.append(await StepSession.open(SplitServiceStub(channel), terms, Traffic()))
            stack.callback(sessions[-1].cancel)
        taken_s: list[list[float]] = [[] for _ in range(1 + len(sessions))]
        # The first one warms up.
        for repeat in range(repeats + 1):
            start_s = time.perf_counter()
            for _ in range(steps):
                both_passes(model, [step])
            each_s = [time.perf_counter() - start_s]
            for session in sessions:
                start_s = time.perf_counter()
                await train(session, step, 1 + repeat * steps, steps)
                each_s.append(time.perf_counter() - start_s)
            if repeat:
                for own, one_s in zip(taken_s, each_s, strict=True):
                    own.append(one_s / steps)
    return taken_s


def measure(name: str, *, threads: int, repeats: int, steps: int, packed: bool) -> Figures:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="fednano-split-") as scratch, ExitStack() as stack:
        folder = model_folder(name, Path(scratch))
        model = load_language_model(folder / "server")
        if packed:
            model.pack()
        (step,) = ragged_passes(1, model.hidden_size, sequences=8)
        flags = ("--threads", str(threads), "--packed-weights", "on" if packed else "off")
        addresses = [stack.enter_context(serve(folder, Path(scratch), *flags, *more)) for more in WAYS]
        in_process_s, retained_s, layers_s, recomputed_s = asyncio.run(race(addresses, model, step, repeats, steps))
    return Figures(
        model=name,
        threads=threads,
        tokens=len(step.inputs_embeds_SD),
        in_process_s=in_process_s,
        retained_s=retained_s,
        layers_s=layers_s,
        recomputed_s=recomputed_s,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.split", description=__doc__)
    parser.add_argument("--models", default="5M,30M,110M", help="nano, 5M, 30M, 110M, or folders; commas between them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps in a repeat")
    parser.add_argument("--packed", action="store_true", help="weights laid out anew, on both sides")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    all_figures = [
        measure(name, threads=given.threads, repeats=given.repeats, steps=given.steps, packed=given.packed)
        for name in given.models.split(",")
    ]
    if given.json:
        print(json.dumps({"conditions": conditions(), "figures": [asdict(one) for one in all_figures]}, indent=2))
        return 0
    print("| model | threads | tokens | in process, ms | graph retained | layers' inputs retained | computed again |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for one in all_figures:
        plain_ms = 1e3 * statistics.median(one.in_process_s)
        ratios = " | ".join(f"{one.ratio(own):.2f} x" for own in (one.retained_s, one.layers_s, one.recomputed_s))
        print(f"| {one.model} | {one.threads} | {one.tokens} | {plain_ms:.1f} | {ratios} |")
    print(conditions_line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
