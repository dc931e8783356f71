"""The client's steps against real servers that stop, stall, or have another model."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fednano.errors import ModelDigestMismatch, NoProgress, PeerUnavailable
from fednano.model.adapter import MODALITIES, NanoAdapters
from fednano.model.batch import EncodedExample, PackedBatch, pack, pack_prompts
from fednano.model.edge import LanguageHalf, NanoEdge
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import load_edge, resolve_model
from fednano.prompt import Prompt
from fednano.rpc.channels import open_channel
from fednano.rpc.server import serving
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms
from fednano.v1.split_service_pb2_grpc import SplitServiceStub, add_SplitServiceServicer_to_server
from services.server.model_thread import ModelThread
from services.server.servicer import SERVICE, SplitServicer
from services.server.settings import ServerSettings

SETTINGS = ServerSettings(insecure=True)
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(resolve_model("nano") / "server")


@pytest.fixture
def edge() -> NanoEdge:
    torch.manual_seed(7)
    adapters = NanoAdapters(MODALITIES, hidden_size=128, rank=4, alpha=8)
    for name, parameter in adapters.named_parameters():
        if "up" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return NanoEdge(load_edge(resolve_model("nano") / "edge"), adapters)


@pytest.fixture
def free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@asynccontextmanager
async def split_server(language: LanguageModel, address: str) -> AsyncIterator[None]:
    thread = ModelThread(threads=1, max_queued=4, timeout_s=PATIENCE_S)
    servicer = SplitServicer(language, thread, SETTINGS)
    services = {SERVICE: lambda server: add_SplitServiceServicer_to_server(servicer, server)}
    try:
        async with serving(services, address, SETTINGS.security, grace_s=0):
            yield
    finally:
        thread.close()


def terms_of(edge: NanoEdge) -> SessionTerms:
    return SessionTerms(manifest=edge.parts.manifest, run="runs/test", peer="the server", progress_timeout_s=PATIENCE_S)


@asynccontextmanager
async def remote_language(
    address: str, terms: SessionTerms, *, give_up_after_s: float = PATIENCE_S, abandoned: threading.Event | None = None
) -> AsyncIterator[RemoteLanguageModel]:
    async with open_channel(address, SETTINGS.security) as channel:
        yield RemoteLanguageModel(
            SplitServiceStub(channel),
            asyncio.get_running_loop(),
            terms,
            give_up_after_s=give_up_after_s,
            abandoned=abandoned,
        )


def examples_of(edge: NanoEdge) -> list[EncodedExample]:
    processor = edge.parts.processor
    return [
        EncodedExample(
            prompt_ids=tuple(processor.prompt_ids(Prompt(question=question))),
            answer_ids=tuple(processor.answer_ids(answer)),
            image_embeds_PD=torch.randn(edge_image_tokens(edge), 128, generator=torch.Generator().manual_seed(1)),
        )
        for question, answer in (("how many circles are there ?", "3"), ("which ?", "two red"))
    ]


def edge_image_tokens(edge: NanoEdge) -> int:
    return edge.parts.processor.prompt_ids(Prompt(question="")).count(edge.parts.processor.image_token_id)


def batch_of(edge: NanoEdge) -> PackedBatch:
    return pack(examples_of(edge), edge.parts.processor.image_token_id)


def loss_of(edge: NanoEdge, language: LanguageHalf) -> Tensor:
    batch = batch_of(edge)
    return edge.answer_nll(language, edge(batch), batch).mean()


def gradients_after(edge: NanoEdge, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(edge.adapters.parameters())))


async def test_a_server_started_anew_between_forward_and_backward_changes_no_bit(
    language: LanguageModel, edge: NanoEdge, free_address: str
) -> None:
    expected = gradients_after(edge, loss_of(edge, language))
    async with remote_language(free_address, terms_of(edge)) as remote:
        async with split_server(language, free_address):
            loss = await asyncio.to_thread(loss_of, edge, remote)
        async with split_server(language, free_address):
            gradients = await asyncio.to_thread(gradients_after, edge, loss)
            remote.close()
    assert all(map(torch.equal, gradients, expected))


async def test_a_pass_waits_for_a_server_that_comes_later(
    language: LanguageModel, edge: NanoEdge, free_address: str
) -> None:
    prompts = pack_prompts(examples_of(edge), edge.parts.processor.image_token_id)
    async with remote_language(free_address, terms_of(edge)) as remote:
        answers = asyncio.create_task(asyncio.to_thread(remote.greedy_answers, edge, prompts, 2))
        await asyncio.sleep(0.3)
        async with split_server(language, free_address):
            assert [len(answer) > 0 for answer in await answers] == [True, True]


async def test_traffic_counts_the_encoded_tensors_of_both_directions(
    language: LanguageModel, edge: NanoEdge, free_address: str
) -> None:
    batch = batch_of(edge)
    both_bytes = 4 * 128 * (len(batch.token_ids_S) + len(batch.output_positions))
    async with remote_language(free_address, terms_of(edge)) as remote, split_server(language, free_address):
        loss = await asyncio.to_thread(loss_of, edge, remote)
        assert (remote.traffic.activations_bytes, remote.traffic.gradients_bytes) == (both_bytes, 0)
        await asyncio.to_thread(gradients_after, edge, loss)
        assert (remote.traffic.activations_bytes, remote.traffic.gradients_bytes) == (both_bytes, both_bytes)
        remote.close()


async def test_a_server_that_never_comes_is_given_up(edge: NanoEdge, free_address: str) -> None:
    start_s = time.monotonic()
    async with remote_language(free_address, terms_of(edge), give_up_after_s=0.5) as remote:
        with pytest.raises(PeerUnavailable, match="the server"):
            await asyncio.to_thread(loss_of, edge, remote)
    assert time.monotonic() - start_s < 10


async def test_a_peer_that_accepts_and_stays_silent_is_no_progress(edge: NanoEdge) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        terms = replace(terms_of(edge), progress_timeout_s=0.2)
        async with remote_language(address, terms, give_up_after_s=0.5) as remote:
            with pytest.raises(NoProgress):
                await asyncio.to_thread(loss_of, edge, remote)


async def test_work_that_is_abandoned_ends_without_the_whole_wait(edge: NanoEdge, free_address: str) -> None:
    abandoned = threading.Event()
    async with remote_language(free_address, terms_of(edge), give_up_after_s=60, abandoned=abandoned) as remote:
        work = asyncio.create_task(asyncio.to_thread(loss_of, edge, remote))
        await asyncio.sleep(0.3)
        abandoned.set()
        with pytest.raises(PeerUnavailable):
            await asyncio.wait_for(work, 10)


async def test_a_server_with_another_model_is_refused_at_once(
    language: LanguageModel, edge: NanoEdge, free_address: str
) -> None:
    other = edge.parts.manifest.model_copy(update={"digest": "0" * 64})
    terms = replace(terms_of(edge), manifest=other)
    async with remote_language(free_address, terms) as remote, split_server(language, free_address):
        with pytest.raises(ModelDigestMismatch):
            await asyncio.to_thread(loss_of, edge, remote)
