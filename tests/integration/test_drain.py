"""A server that is told to stop finishes what was begun, hands the rest back, and no client can tell by its bits.

S: tokens of a packed batch   N: output positions   D: hidden size
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from joined_steps import Step, nano, ragged_steps
from server_process import PATIENCE_S, server_process

from fednano.config import Security
from fednano.errors import PeerUnavailable
from fednano.model.edge import LanguageHalf
from fednano.model.manifest import read_manifest, resolve_model
from fednano.rpc.channels import open_channel
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.v1.split_service_pb2_grpc import SplitServiceStub

PLAINTEXT = Security(insecure=True)
TERMS = SessionTerms(
    manifest=read_manifest(resolve_model("nano") / "server"), run="runs/test", peer="the server", progress_timeout_s=20
)


@pytest.fixture(scope="module")
def step() -> Step:
    return ragged_steps(nano())[2]


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[tuple[RemoteLanguageModel, grpc.aio.Channel]]:
    async with open_channel(address, PLAINTEXT) as channel:
        remote = RemoteLanguageModel(
            SplitServiceStub(channel), asyncio.get_running_loop(), TERMS, give_up_after_s=PATIENCE_S
        )
        yield remote, channel
        remote.close()


class HalfStep:
    """A step whose forward pass is done."""

    def __init__(self, remote: RemoteLanguageModel, step: Step) -> None:
        self._step = step
        self._leaf_SD = step.inputs_embeds_SD.clone().requires_grad_()
        self._output_N = remote.forward(self._leaf_SD, step.sequence_lengths, step.output_positions, "hidden_states")
        assert torch.equal(self._output_N, step.output_N)

    def finish(self) -> None:
        (grad_SD,) = torch.autograd.grad(self._output_N, self._leaf_SD, self._step.grad_output_N)
        assert torch.equal(grad_SD, self._step.grad_inputs_SD)


async def until_not_serving(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await health.Check(health_pb2.HealthCheckRequest(service="fednano.v1.SplitService"), timeout=5)
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                return
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_step_that_was_begun_is_finished_and_the_next_one_taken_elsewhere(tmp_path: Path, step: Step) -> None:
    with server_process(tmp_path, "--shutdown-grace-s", "30") as first:
        async with client_of(first.address) as (remote, channel):
            half = await asyncio.to_thread(HalfStep, remote, step)
            idle = await StepSession.open(SplitServiceStub(channel), TERMS, Traffic())
            first.process.send_signal(signal.SIGTERM)
            await until_not_serving(channel)
            with pytest.raises(PeerUnavailable, match="stopping"):
                await StepSession.open(SplitServiceStub(channel), TERMS, Traffic())
            with pytest.raises(PeerUnavailable, match="stopping"):
                await idle._stream.receive()
            assert first.process.poll() is None
            stopped_s = time.monotonic()
            await asyncio.to_thread(half.finish)
            assert await asyncio.to_thread(first.ended) == 0
            # It did not wait for its grace to pass.
            assert time.monotonic() - stopped_s < 15
            with server_process(tmp_path, listen=first.address):
                await asyncio.to_thread(lambda: HalfStep(remote, step).finish())


@pytest.mark.slow
async def test_a_step_that_outlasts_the_grace_is_done_again_elsewhere(tmp_path: Path, step: Step) -> None:
    with server_process(tmp_path, "--shutdown-grace-s", "0.2") as first:
        async with client_of(first.address) as (remote, _):
            half = await asyncio.to_thread(HalfStep, remote, step)
            first.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(first.ended) == 0
            redone = asyncio.create_task(asyncio.to_thread(half.finish))
            with server_process(tmp_path, listen=first.address):
                await redone


def train(language: LanguageHalf, step: Step, count: int) -> torch.Tensor:
    """So many steps of descent on the inputs themselves: each needs the one before it."""
    inputs_SD = step.inputs_embeds_SD.clone()
    for _ in range(count):
        leaf_SD = inputs_SD.requires_grad_()
        output_N = language.forward(leaf_SD, step.sequence_lengths, step.output_positions, "hidden_states")
        (grad_SD,) = torch.autograd.grad(output_N, leaf_SD, step.grad_output_N)
        inputs_SD = (leaf_SD - 0.01 * grad_SD).detach()
    return inputs_SD


@pytest.mark.slow
async def test_training_through_a_restart_ends_with_the_same_bits(tmp_path: Path, step: Step) -> None:
    wanted_SD = train(nano(), step, 40)
    with server_process(tmp_path) as first:
        async with client_of(first.address) as (remote, _):
            training = asyncio.create_task(asyncio.to_thread(train, remote, step, 40))
            async with asyncio.timeout(PATIENCE_S):
                while remote.traffic.gradients_bytes == 0:
                    await asyncio.sleep(0)
            first.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(first.ended) == 0
            assert not training.done()
            with server_process(tmp_path, listen=first.address):
                assert torch.equal(await training, wanted_SD)
