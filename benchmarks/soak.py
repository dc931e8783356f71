"""10,000 steps in 1,000 sessions on one server: whether memory, threads or file descriptors grow.

Eight clients at a time open a session on a connection of their own, take ten steps and go: most of them in order, every
fifth with a forward pass under way and every seventh with two that await their backward pass. The first tenth warms up;
of what is left, the first third is compared with the last.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.processes import resident_bytes
from benchmarks.round_report import conditions, conditions_line
from benchmarks.split_server import PLAINTEXT, model_folder, serve_process
from benchmarks.split_steps import ragged_passes, train
from fednano.model.manifest import Manifest, read_manifest
from fednano.rpc.channels import open_channel
from fednano.split.session import Pass, SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.v1.split_service_pb2_grpc import SplitServiceStub

CLIENTS_AT_ONCE = 8
WARM_PART = 0.1
# Growth from the first third to the last that is taken for noise.
MEMORY_SLACK, COUNT_SLACK = 0.02, 2.0


@dataclass(kw_only=True)
class Samples:
    """Of the server's process, one after each session."""

    memory_bytes: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def take(self, pid: int) -> None:
        self.memory_bytes.append(resident_bytes(pid))
        self.threads.append(len(list(Path(f"/proc/{pid}/task").iterdir())))
        self.files.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Medians of the first and the last third of what was sampled after the warm-up."""

    first: float
    last: float

    @classmethod
    def of(cls, samples: Sequence[int]) -> "Trend":
        warm = samples[int(WARM_PART * len(samples)) :]
        third = len(warm) // 3
        return cls(first=statistics.median(warm[:third]), last=statistics.median(warm[-third:]))

    @property
    def growth(self) -> float:
        return self.last - self.first


@dataclass(frozen=True, kw_only=True)
class Figures:
    steps: int
    sessions: int
    seconds: float
    memory_bytes: Trend
    threads: Trend
    files: Trend
    peak_memory_bytes: int

    @property
    def has_no_trend(self) -> bool:
        counts = (self.threads, self.files)
        memory = self.memory_bytes.growth <= MEMORY_SLACK * self.memory_bytes.first
        return memory and all(trend.growth <= COUNT_SLACK for trend in counts)


async def one_session(address: str, manifest: Manifest, step: Pass, steps: int, number: int) -> None:
    terms = SessionTerms(manifest=manifest, run="runs/soak", peer=address)
    async with open_channel(address, PLAINTEXT) as channel:
        session = await StepSession.open(SplitServiceStub(channel), terms, Traffic())
        await train(session, step, 1, steps)
        if number % 7 == 0:
            for step_id in (steps + 1, steps + 2):
                await session.forward(Pass(**{**vars(step), "step_id": step_id}))
        if number % 5 == 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.002):
                    await session.forward(Pass(**{**vars(step), "step_id": steps + 3}))
        session.cancel()


async def soak(address: str, pid: int, manifest: Manifest, sessions: int, steps: int) -> Samples:
    samples, numbers = Samples(), iter(range(sessions))
    passes = ragged_passes(CLIENTS_AT_ONCE, manifest.hidden_size, sequences=1)

    async def keep_coming(step: Pass) -> None:
        for number in numbers:
            await one_session(address, manifest, step, steps, number)
            samples.take(pid)

    await asyncio.gather(*map(keep_coming, passes))
    return samples


def measure(name: str, *, sessions: int, steps: int) -> Figures:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fednano-soak-") as scratch:
        folder = model_folder(name, Path(scratch))
        with serve_process(folder, Path(scratch)) as (address, pid):
            start_s = time.perf_counter()
            samples = asyncio.run(soak(address, pid, read_manifest(folder / "server"), sessions, steps))
            seconds = time.perf_counter() - start_s
    return Figures(
        steps=sessions * steps,
        sessions=sessions,
        seconds=seconds,
        memory_bytes=Trend.of(samples.memory_bytes),
        threads=Trend.of(samples.threads),
        files=Trend.of(samples.files),
        peak_memory_bytes=max(samples.memory_bytes),
    )


def main() -> int:
    """1 where something grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--model", default="nano", help="nano, 5M, 30M, 110M, or a folder")
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10, help="of each session")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = measure(given.model, sessions=given.sessions, steps=given.steps)
    if given.json:
        verdict = {"has_no_trend": figures.has_no_trend}
        print(json.dumps({"conditions": conditions(), **asdict(figures), **verdict}, indent=2))
    else:
        print(f"{figures.steps} steps in {figures.sessions} sessions, {figures.seconds:.0f} s")
        memory = figures.memory_bytes
        print(f"memory, MB: {memory.first / 1e6:.1f}, then {memory.last / 1e6:.1f}, ", end="")
        print(f"at most {figures.peak_memory_bytes / 1e6:.1f}")
        print(f"threads: {figures.threads.first:g}, then {figures.threads.last:g}")
        print(f"file descriptors: {figures.files.first:g}, then {figures.files.last:g}")
        print("no trend" if figures.has_no_trend else "SOMETHING GROWS")
        print(conditions_line())
    return 0 if figures.has_no_trend else 1


if __name__ == "__main__":
    sys.exit(main())
