"""Clients' steps that share passes against the same steps one after the other, over real gRPC.

8 clients with 2 sequences of 40 to 80 tokens each, all training at one time, each with a connection of its own and 8
outputs a sequence; a server that shares passes and one that does not take turns. Both give the same bits.
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
from fednano.model.manifest import Manifest, read_manifest
from fednano.rpc.channels import open_channel
from fednano.split.session import Pass, SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.v1.split_service_pb2_grpc import SplitServiceStub


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Seconds of a step of all clients, for each repeat. The last two are of the passes alone, in this process."""

    model: str
    threads: int
    clients: int
    shared_s: list[float]
    one_by_one_s: list[float]
    in_process_shared_s: list[float]
    in_process_one_by_one_s: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.one_by_one_s) / statistics.median(self.shared_s)

    @property
    def in_process_ratio(self) -> float:
        return statistics.median(self.in_process_one_by_one_s) / statistics.median(self.in_process_shared_s)


async def race(
    addresses: Sequence[str], manifest: Manifest, passes: Sequence[Pass], repeats: int, steps: int
) -> list[list[float]]:
    """Seconds of a step of all clients, by address and repeat. Who goes first changes from repeat to repeat."""
    async with AsyncExitStack() as stack:
        teams = []
        for address in addresses:
            terms = SessionTerms(manifest=manifest, run="runs/batch", peer=address)
            team = []
            for _ in passes:
                channel = await stack.enter_async_context(open_channel(address, PLAINTEXT))
                team.append(await StepSession.open(SplitServiceStub(channel), terms, Traffic()))
                stack.callback(team[-1].cancel)
            teams.append(team)
        taken_s: list[list[float]] = [[] for _ in teams]
        for repeat in range(repeats + 1):
            gradients = []
            for index in range(len(teams))[:: 1 if repeat % 2 else -1]:
                start_s = time.perf_counter()
                first_id = 1 + repeat * steps
                works = (
                    train(session, step, first_id, steps) for session, step in zip(teams[index], passes, strict=True)
                )
                gradients.append(torch.cat(await asyncio.gather(*works)))
                # The first one warms up.
                if repeat:
                    taken_s[index].append((time.perf_counter() - start_s) / steps)
            assert torch.equal(gradients[0], gradients[1]), "shared passes changed bits"
    return taken_s


def in_process(model: LanguageModel, passes: Sequence[Pass], repeats: int, steps: int) -> list[list[float]]:
    """The same passes, shared and one by one, without a server."""
    contestants: list[list[Sequence[Pass]]] = [[passes], [[step] for step in passes]]
    taken_s: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):
        for index, groups in enumerate(contestants):
            start_s = time.perf_counter()
            for _ in range(steps):
                for group in groups:
                    both_passes(model, group)
            if repeat:
                taken_s[index].append((time.perf_counter() - start_s) / steps)
    return taken_s


def measure(name: str, *, threads: int, clients: int, repeats: int, steps: int, packed: bool) -> Figures:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="fednano-batch-") as scratch, ExitStack() as stack:
        folder = model_folder(name, Path(scratch))
        manifest = read_manifest(folder / "server")
        passes = ragged_passes(clients, manifest.hidden_size)
        flags = ("--threads", str(threads), "--packed-weights", "on" if packed else "off", "--batching")
        addresses = [
            stack.enter_context(serve(folder, Path(scratch), *flags, batching)) for batching in ("exact", "off")
        ]
        shared_s, one_by_one_s = asyncio.run(race(addresses, manifest, passes, repeats, steps))
        stack.close()
        model = load_language_model(folder / "server")
        if packed:
            model.pack()
        own_s = in_process(model, passes, repeats, steps)
    return Figures(
        model=name,
        threads=threads,
        clients=clients,
        shared_s=shared_s,
        one_by_one_s=one_by_one_s,
        in_process_shared_s=own_s[0],
        in_process_one_by_one_s=own_s[1],
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--models", default="nano,5M", help="nano, 5M, 30M, 110M, or folders; commas between them")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="steps of each client in a repeat")
    parser.add_argument("--packed", action="store_true", help="weights laid out anew, on both sides")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    all_figures = [
        measure(
            name,
            threads=int(threads),
            clients=given.clients,
            repeats=given.repeats,
            steps=given.steps,
            packed=given.packed,
        )
        for name in given.models.split(",")
        for threads in given.threads.split(",")
    ]
    if given.json:
        print(json.dumps({"conditions": conditions(), "figures": [asdict(one) for one in all_figures]}, indent=2))
        return 0
    print("| model | threads | one by one, ms | shared, ms | ratio | ratio of the passes alone |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for one in all_figures:
        taken_ms = (1e3 * statistics.median(each) for each in (one.one_by_one_s, one.shared_s))
        cells = [one.model, str(one.threads), *(f"{each:.1f}" for each in taken_ms)]
        print(f"| {' | '.join(cells)} | {one.ratio:.2f} | {one.in_process_ratio:.2f} |")
    print(conditions_line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
