"""Clients with long batches, each a process of its own, as they would be on machines of their own.

A client says a line when it is warm, takes a number of steps for a line with that number, and says a line again.
S: tokens of a packed batch   D: hidden size
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Self

import torch

from benchmarks.split_server import PLAINTEXT, REPOSITORY
from benchmarks.split_steps import OUTPUTS, train
from fednano.model.manifest import read_manifest
from fednano.rpc.channels import open_channel
from fednano.split.session import Pass, SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.v1.split_service_pb2_grpc import SplitServiceStub

STOP_TIMEOUT_S = 20.0


def long_pass(sequences: int, tokens: int, width: int, dtype: torch.dtype) -> Pass:
    """A batch whose answers are the last tokens of each sequence."""
    ends = accumulate([tokens] * sequences)
    return Pass(
        step_id=1,
        inputs_embeds_SD=torch.randn(sequences * tokens, width, generator=torch.Generator().manual_seed(0)).to(dtype),
        sequence_lengths=(tokens,) * sequences,
        output_positions=tuple(end - OUTPUTS + index for end in ends for index in range(OUTPUTS)),
        output_kind="hidden_states",
        requires_grad=True,
    )


@dataclass(frozen=True, kw_only=True)
class GpuClients:
    processes: Sequence["subprocess.Popen[str]"]

    @classmethod
    @contextmanager
    def started(cls, folder: Path, address: str, count: int, sequences: int, tokens: int) -> Iterator[Self]:
        """They end with the block."""
        command = [sys.executable, "-m", "benchmarks.gpu_clients", str(folder), address, str(sequences), str(tokens)]
        group = cls(processes=[_talking(command) for _ in range(count)])
        try:
            yield group
        finally:
            for process in group.processes:
                process.kill()
                process.communicate(timeout=STOP_TIMEOUT_S)

    def wait_until_warm(self) -> None:
        self._hear()

    def run(self, steps: int) -> None:
        """Returns when the last one has taken its steps."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        self._hear()

    def _hear(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"a client has ended (exit {process.poll()})")


def _talking(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def take_steps(folder: Path, address: str, sequences: int, tokens: int) -> None:
    manifest = read_manifest(folder / "server")
    step = long_pass(sequences, tokens, manifest.hidden_size, torch.bfloat16)
    async with open_channel(address, PLAINTEXT) as channel:
        terms = SessionTerms(manifest=manifest, run="runs/gpu", peer=address, progress_timeout_s=300.0)
        session = await StepSession.open(SplitServiceStub(channel), terms, Traffic())
        await train(session, step, 1, 1)
        print("warm", flush=True)
        steps = int(await asyncio.to_thread(sys.stdin.readline) or 0)
        await train(session, step, 2, steps)
        print("done", flush=True)
        session.cancel()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(take_steps(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
