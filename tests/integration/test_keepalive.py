"""Connections on which nothing is said for long, with the real options of both ends and a clock that runs faster.

gRPC counts keepalive by itself; only its settings are shrunken here, all of them by the same factor.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
import torch
from joined_steps import Step, nano, ragged_steps
from prometheus_client import CollectorRegistry
from silent_proxy import SilentProxy

from fednano.errors import PeerUnavailable
from fednano.model.language import LanguageModel
from fednano.rpc.channels import CHANNEL_OPTIONS
from fednano.rpc.server import SERVER_OPTIONS
from fednano.split.session import Pass, SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.v1.split_service_pb2_grpc import SplitServiceStub, add_SplitServiceServicer_to_server
from services.server.metrics import ServerMetrics
from services.server.model_thread import ModelThread
from services.server.servicer import SplitServicer
from services.server.settings import ServerSettings

FASTER = 100
PATIENCE_S = 20.0
SILENT_S = 7.0
Options = list[tuple[str, Any]]


def shrunken(options: Any, **other: int) -> Options:
    """Every time a hundredth, but those named in ``other``, whose dots are written as underscores."""
    short = {name: value // FASTER if name.endswith("_ms") else value for name, value in options}
    return [(name, other.get(name.replace(".", "_"), value)) for name, value in short.items()]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return nano()


@pytest.fixture(scope="module")
def step() -> Step:
    return ragged_steps(nano())[0]


@asynccontextmanager
async def server(model: LanguageModel, registry: CollectorRegistry, options: Options) -> AsyncIterator[str]:
    """The address of a server with these options and no others."""
    thread = ModelThread(threads=1, max_queued=4, timeout_s=PATIENCE_S, metrics=ServerMetrics(registry))
    grpc_server = grpc.aio.server(options=options)
    servicer = SplitServicer(model, thread, ServerSettings(insecure=True))
    add_SplitServiceServicer_to_server(servicer, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await grpc_server.stop(0)
        thread.close()


@asynccontextmanager
async def session(address: str, model: LanguageModel) -> AsyncIterator[StepSession]:
    terms = SessionTerms(manifest=model.manifest, run="runs/test", peer="the server", progress_timeout_s=PATIENCE_S)
    async with grpc.aio.insecure_channel(address, options=shrunken(CHANNEL_OPTIONS)) as channel:
        opened = await StepSession.open(SplitServiceStub(channel), terms, Traffic())
        yield opened
        opened.cancel()


def passed(step: Step) -> Pass:
    return Pass(
        step_id=1,
        inputs_embeds_SD=step.inputs_embeds_SD,
        sequence_lengths=step.sequence_lengths,
        output_positions=step.output_positions,
        output_kind="hidden_states",
        requires_grad=True,
    )


async def test_a_session_outlives_minutes_in_which_its_client_only_computes(model: LanguageModel, step: Step) -> None:
    """Seven seconds are more than eleven minutes here."""
    async with (
        server(model, CollectorRegistry(), shrunken(SERVER_OPTIONS)) as address,
        session(address, model) as opened,
    ):
        forward = passed(step)
        assert torch.equal(await opened.forward(forward), step.output_N)
        await asyncio.sleep(SILENT_S)
        assert torch.equal(await opened.backward(forward, step.grad_output_N), step.grad_inputs_SD)


async def test_without_leave_to_ping_so_often_the_same_session_would_be_cut_off(
    model: LanguageModel, step: Step
) -> None:
    """That the test above can fail: gRPC's own default takes pings within five minutes for abuse."""
    strict = shrunken(SERVER_OPTIONS, grpc_http2_min_ping_interval_without_data_ms=300_000 // FASTER)
    async with (
        server(model, CollectorRegistry(), strict) as address,
        session(address, model) as opened,
    ):
        forward = passed(step)
        await opened.forward(forward)
        await asyncio.sleep(SILENT_S)
        with pytest.raises(PeerUnavailable):
            await opened.backward(forward, step.grad_output_N)


async def test_a_client_that_vanished_without_a_word_is_noticed_and_its_graphs_freed(
    model: LanguageModel, step: Step
) -> None:
    registry = CollectorRegistry()
    async with (
        server(model, registry, shrunken(SERVER_OPTIONS)) as address,
        SilentProxy(address) as proxy,
        session(proxy.address, model) as opened,
    ):
        await opened.forward(passed(step))
        assert (registry.get_sample_value("fednano_server_graph_bytes") or 0) > 0
        proxy.fall_silent()
        async with asyncio.timeout(PATIENCE_S):
            while registry.get_sample_value("fednano_server_sessions", {"kind": "steps"}):
                await asyncio.sleep(0.01)
        assert registry.get_sample_value("fednano_server_graph_bytes") == 0
        assert registry.get_sample_value("fednano_server_input_bytes") == 0
