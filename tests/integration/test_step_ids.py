"""A step has at most one effect: its id is taken once in a session, and done again in another it changes nothing twice.

S: tokens of a packed batch   N: output positions   D: hidden size
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch
from joined_steps import Step, nano, ragged_steps
from prometheus_client import CollectorRegistry
from silent_proxy import SilentProxy
from split_client import NANO, Client, inputs, steps

from fednano.config import Security
from fednano.errors import FieldInvalid, StepUnknown
from fednano.model.edge import LanguageHalf
from fednano.model.language import LanguageModel, load_language_model
from fednano.rpc.channels import open_channel
from fednano.rpc.server import serving
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.v1.split_service_pb2_grpc import SplitServiceStub, add_SplitServiceServicer_to_server
from fednano.wire.tensors import encode_tensor
from services.server.metrics import ServerMetrics
from services.server.model_thread import ModelThread
from services.server.servicer import SERVICE, SplitServicer
from services.server.settings import ServerSettings

PLAINTEXT = Security(insecure=True)
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(NANO)


@asynccontextmanager
async def server(model: LanguageModel, registry: CollectorRegistry) -> AsyncIterator[str]:
    thread = ModelThread(threads=1, max_queued=8, timeout_s=PATIENCE_S, metrics=ServerMetrics(registry))
    servicer = SplitServicer(model, thread, ServerSettings(insecure=True))
    services = {SERVICE: lambda grpc_server: add_SplitServiceServicer_to_server(servicer, grpc_server)}
    try:
        async with serving(services, "127.0.0.1:0", PLAINTEXT, grace_s=0.2) as running:
            yield running.address
    finally:
        thread.close()


@asynccontextmanager
async def opened_client(address: str, model: LanguageModel) -> AsyncIterator[Client]:
    async with open_channel(address, PLAINTEXT) as channel:
        client = steps(SplitServiceStub(channel))
        await client.open(model)
        yield client


def done(registry: CollectorRegistry, kind: str) -> float:
    return registry.get_sample_value("fednano_server_steps_total", {"kind": kind}) or 0.0


async def until_nothing_is_held(registry: CollectorRegistry) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(registry.get_sample_value(f"fednano_server_{name}_bytes") for name in ("graph", "input")):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("again", [1, 0, -5])
async def test_a_forward_pass_whose_id_does_not_grow_has_no_effect(model: LanguageModel, again: int) -> None:
    registry = CollectorRegistry()
    async with server(model, registry) as address, opened_client(address, model) as client:
        await client.forward(1, inputs())
        await client.send_forward(again, inputs())
        with pytest.raises(FieldInvalid, match="step_id must grow"):
            await client.read()
        assert done(registry, "forward") == 1
        await until_nothing_is_held(registry)


async def test_of_two_backward_passes_of_one_step_the_second_has_no_effect(model: LanguageModel) -> None:
    """Both are under way before the first answer is read."""
    registry = CollectorRegistry()
    async with server(model, registry) as address, opened_client(address, model) as client:
        output_N = await client.forward(1, inputs())
        spec, payload = encode_tensor(torch.ones_like(output_N), tpb.ENCODING_RAW)
        for _ in range(2):
            await client.send(backward=pb.BackwardStep(step_id=1, grad_output=spec))
            await client.send_chunks(payload)
        first = (await client.read()).backward_result
        assert first.step_id == 1
        await client.read_tensor(first.grad_inputs_embeds)
        with pytest.raises(StepUnknown) as refused:
            await client.read()
        assert refused.value.facts["step_id"] == "1"
        assert done(registry, "backward") == 1
        await until_nothing_is_held(registry)


async def test_a_discarded_step_gets_no_backward_pass(model: LanguageModel) -> None:
    registry = CollectorRegistry()
    async with server(model, registry) as address, opened_client(address, model) as client:
        output_N = await client.forward(1, inputs())
        for _ in range(2):
            await client.send(discard=pb.DiscardStep(step_id=1))
        with pytest.raises(StepUnknown):
            await client.backward(1, torch.ones_like(output_N))
        assert done(registry, "backward") == 0


def descend(language: LanguageHalf, step: Step, count: int) -> torch.Tensor:
    """Steps of descent on the inputs: an effect that came twice, or not at all, would show in the end."""
    inputs_SD = step.inputs_embeds_SD.clone()
    for _ in range(count):
        leaf_SD = inputs_SD.requires_grad_()
        output_N = language.forward(leaf_SD, step.sequence_lengths, step.output_positions, "hidden_states")
        (grad_SD,) = torch.autograd.grad(output_N, leaf_SD, step.grad_output_N)
        inputs_SD = (leaf_SD - 0.01 * grad_SD).detach()
    return inputs_SD


async def test_a_step_whose_answer_was_lost_is_done_again_after_reconnecting_and_counts_once(
    model: LanguageModel,
) -> None:
    step, registry = ragged_steps(nano())[0], CollectorRegistry()
    wanted_SD = descend(nano(), step, 3)
    terms = SessionTerms(manifest=model.manifest, run="runs/test", peer="the server", progress_timeout_s=PATIENCE_S)
    async with (
        server(model, registry) as address,
        SilentProxy(address) as proxy,
        open_channel(proxy.address, PLAINTEXT) as channel,
    ):
        remote = RemoteLanguageModel(SplitServiceStub(channel), asyncio.get_running_loop(), terms, give_up_after_s=20)
        assert torch.equal(await asyncio.to_thread(descend, remote, step, 1), descend(nano(), step, 1))
        # The forward pass of the next step is computed, and nobody hears of it.
        proxy.hold_answers()
        training = asyncio.create_task(asyncio.to_thread(descend, remote, step, 3))
        async with asyncio.timeout(PATIENCE_S):
            while done(registry, "forward") < 2:
                await asyncio.sleep(0.001)
        proxy.cut()
        assert torch.equal(await training, wanted_SD)
        # One forward pass more than steps; the lost one left nothing behind.
        assert (done(registry, "forward"), done(registry, "backward")) == (5, 4)
        remote.close()
        await until_nothing_is_held(registry)
