"""Ten times more than fits is asked of a real server's process: it lives, its memory stays bounded, all are served.

S: tokens of a packed batch   N: output positions
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import torch
from joined_steps import Step, nano, ragged_steps
from server_process import server_process

from fednano.config import Security
from fednano.model.manifest import read_manifest, resolve_model
from fednano.rpc.channels import open_channel
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms
from fednano.v1.split_service_pb2_grpc import SplitServiceStub

CLIENTS, PENDING, ROUNDS = 10, 4, 2
# A row of the nano model keeps 33 kB: 10 clients with 4 passes of 104 rows each would keep 137 MB.
ASKED_BYTES = CLIENTS * PENDING * 104 * 33_000
TERMS = SessionTerms(
    manifest=read_manifest(resolve_model("nano") / "server"), run="runs/test", peer="the server", progress_timeout_s=60
)


def train(remote: RemoteLanguageModel, step: Step) -> bool:
    """Whether every bit was right, with as many forward passes as may be pending before the first backward pass."""
    right = True
    for _ in range(ROUNDS):
        leaves = [step.inputs_embeds_SD.clone().requires_grad_() for _ in range(PENDING)]
        outputs = [
            remote.forward(leaf_SD, step.sequence_lengths, step.output_positions, "hidden_states") for leaf_SD in leaves
        ]
        for leaf_SD, output_N in zip(leaves, outputs, strict=True):
            (grad_SD,) = torch.autograd.grad(output_N, leaf_SD, step.grad_output_N)
            right &= torch.equal(output_N, step.output_N) and torch.equal(grad_SD, step.grad_inputs_SD)
    return right


def resident_bytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.slow
async def test_ten_times_more_load_than_fits_never_kills_the_server(tmp_path: Path) -> None:
    step = ragged_steps(nano())[2]
    # A tensor of a step takes 53 kB, and its gradient as much at most: ten times more than 300 kB.
    flags = ("--graph-memory-bytes", str(ASKED_BYTES // 10), "--input-memory-bytes", "300000")
    with server_process(tmp_path, *flags) as server:
        before_bytes = resident_bytes(server.process.pid, "VmRSS")
        async with AsyncExitStack() as stack:
            remotes = []
            for _ in range(CLIENTS):
                channel = await stack.enter_async_context(open_channel(server.address, Security(insecure=True)))
                remote = RemoteLanguageModel(
                    SplitServiceStub(channel), asyncio.get_running_loop(), TERMS, give_up_after_s=100
                )
                stack.callback(remote.close)
                remotes.append(remote)
            right = await asyncio.gather(*(asyncio.to_thread(train, remote, step) for remote in remotes))
        assert all(right)
        assert server.process.poll() is None
        grown_bytes = resident_bytes(server.process.pid, "VmHWM") - before_bytes
    # Besides the graphs there are the buffers of the connections and of the pass that runs.
    assert grown_bytes < 0.6 * ASKED_BYTES
