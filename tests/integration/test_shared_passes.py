"""Several clients over real gRPC share passes, a budget of memory and a server under ten times its load.

Each gets, bit for bit, what it gets from the model by itself.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import torch
from joined_steps import Step, nano, ragged_steps
from prometheus_client import CollectorRegistry
from split_client import PATIENCE_S

from fednano.errors import ServerBusy
from fednano.model.language import LanguageModel
from fednano.rpc.channels import open_channel
from fednano.rpc.server import RunningServer, serving
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms
from fednano.v1.split_service_pb2_grpc import SplitServiceStub, add_SplitServiceServicer_to_server
from services.server.metrics import ServerMetrics
from services.server.model_thread import ModelThread
from services.server.servicer import SERVICE, SplitServicer
from services.server.settings import ServerSettings

Answer = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return nano()


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    """Of a copy of the model: the other one is for the server's thread."""
    return ragged_steps(nano())


@asynccontextmanager
async def server(
    model: LanguageModel, registry: CollectorRegistry, **settings: Any
) -> AsyncIterator[tuple[RunningServer, ServerSettings]]:
    chosen = ServerSettings(insecure=True, shutdown_grace_s=0.2, **settings)
    thread = ModelThread(threads=1, max_queued=64, timeout_s=PATIENCE_S, metrics=ServerMetrics(registry))
    servicer = SplitServicer(model, thread, chosen)
    services = {SERVICE: lambda grpc_server: add_SplitServiceServicer_to_server(servicer, grpc_server)}
    try:
        async with serving(services, "127.0.0.1:0", chosen.security, grace_s=0.2) as running:
            yield running, chosen
    finally:
        thread.close()


@asynccontextmanager
async def clients(
    model: LanguageModel, running: tuple[RunningServer, ServerSettings], count: int
) -> AsyncIterator[list[RemoteLanguageModel]]:
    """Each with a connection of its own."""
    terms = SessionTerms(manifest=model.manifest, run="runs/test", peer="the server", progress_timeout_s=PATIENCE_S)
    server, settings = running
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        remotes = []
        for _ in range(count):
            channel = await stack.enter_async_context(open_channel(server.address, settings.security))
            remotes.append(RemoteLanguageModel(SplitServiceStub(channel), loop, terms, give_up_after_s=60.0))
            stack.callback(remotes[-1].close)
        yield remotes


def train_step(remote: RemoteLanguageModel, step: Step) -> Answer:
    leaf_SD = step.inputs_embeds_SD.clone().requires_grad_()
    output_N = remote.forward(leaf_SD, step.sequence_lengths, step.output_positions, "hidden_states")
    (grad_SD,) = torch.autograd.grad(output_N, leaf_SD, step.grad_output_N)
    return output_N.detach(), grad_SD


def train_steps(remote: RemoteLanguageModel, step: Step, count: int) -> list[Answer]:
    return [train_step(remote, step) for _ in range(count)]


async def assert_exact(remotes: Sequence[RemoteLanguageModel], steps: Sequence[Step], count: int) -> None:
    work = (asyncio.to_thread(train_steps, remote, step, count) for remote, step in zip(remotes, steps, strict=True))
    for step, answers in zip(steps, await asyncio.gather(*work), strict=True):
        assert len(answers) == count
        for output_N, grad_SD in answers:
            assert torch.equal(output_N, step.output_N)
            assert torch.equal(grad_SD, step.grad_inputs_SD)


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(f"fednano_server_{name}", labels) or 0.0


async def test_clients_that_share_passes_get_the_bits_they_get_alone(model: LanguageModel, steps: list[Step]) -> None:
    registry = CollectorRegistry()
    async with server(model, registry, join_window_s=0.05) as running, clients(model, running, 6) as remotes:
        await assert_exact(remotes, steps, 6)
    passes, done = sample(registry, "pass_seconds_count", kind="forward"), 6 * 6
    assert sample(registry, "steps_total", kind="forward") == done
    assert passes < done / 2


async def test_without_batching_nobody_shares_a_pass(model: LanguageModel, steps: list[Step]) -> None:
    registry = CollectorRegistry()
    async with server(model, registry, batching="off") as running, clients(model, running, 6) as remotes:
        await assert_exact(remotes, steps, 2)
    assert sample(registry, "pass_seconds_count", kind="forward") == 12
    assert sample(registry, "pass_seconds_count", kind="backward") == 12


@pytest.mark.parametrize(("checkpointing", "seen"), [("off", "recomputed_total"), ("auto", "checkpointed_total")])
async def test_ten_times_the_memory_is_asked_for_and_everybody_is_served(
    model: LanguageModel, steps: list[Step], checkpointing: str, seen: str
) -> None:
    """The graphs of all take 6 MB and their tensors 100 kB: there is room for a tenth of either."""
    registry = CollectorRegistry()
    settings = {
        "graph_memory_bytes": 600_000,
        "input_memory_bytes": 10_000,
        "activation_checkpointing": checkpointing,
    }
    async with server(model, registry, **settings) as running, clients(model, running, 6) as remotes:
        await assert_exact(remotes, steps, 2)
        assert sample(registry, "graph_bytes") == 0
    assert sample(registry, seen) > 0
    assert sample(registry, "input_bytes") == 0


async def test_a_client_that_goes_takes_its_graphs_and_its_room_with_it(
    model: LanguageModel, steps: list[Step]
) -> None:
    registry = CollectorRegistry()
    async with server(model, registry) as running, clients(model, running, 2) as remotes:
        goes, stays = remotes
        leaf_SD = steps[0].inputs_embeds_SD.clone().requires_grad_()
        arguments = (steps[0].sequence_lengths, steps[0].output_positions, "hidden_states")
        await asyncio.to_thread(goes.forward, leaf_SD, *arguments)
        assert sample(registry, "graph_bytes") > 0
        goes.close()
        async with asyncio.timeout(PATIENCE_S):
            while sample(registry, "graph_bytes") or sample(registry, "input_bytes"):
                await asyncio.sleep(0.01)
        await assert_exact([stays], steps[1:2], 1)


async def test_past_the_input_budget_a_step_is_refused_before_it_is_sent(
    model: LanguageModel, steps: list[Step]
) -> None:
    """The refusal says when to come back, and a client whose patience has ended passes it on."""
    registry = CollectorRegistry()
    async with server(model, registry, input_memory_bytes=20_000) as running, clients(model, running, 2) as remotes:
        holds, wants = remotes
        wants._give_up_after_s = 0.0
        leaf_SD = steps[0].inputs_embeds_SD.clone().requires_grad_()
        arguments = (steps[0].sequence_lengths, steps[0].output_positions, "hidden_states")
        output_N = await asyncio.to_thread(holds.forward, leaf_SD, *arguments)
        held_bytes = sample(registry, "input_bytes")
        assert 0 < held_bytes < 20_000
        with pytest.raises(ServerBusy, match="do not fit") as refused:
            await asyncio.to_thread(train_step, wants, steps[2])
        assert refused.value.retry_after_s == 1.0
        assert sample(registry, "input_bytes") == held_bytes
        (grad_SD,) = await asyncio.to_thread(torch.autograd.grad, output_N, leaf_SD, steps[0].grad_output_N)
        assert torch.equal(grad_SD, steps[0].grad_inputs_SD)
        wants._give_up_after_s = 60.0
        await assert_exact([wants], steps[2:3], 1)
