"""A loss that the server computes is the one that the client would have computed, and so is its gradient."""

import asyncio

import pytest
import torch
from torch import Tensor
from whole_and_split import nano_edge, nano_language, ragged_examples, remote_language

from fednano.model.batch import PackedBatch, pack
from fednano.model.edge import LanguageHalf, NanoEdge
from fednano.model.language import LanguageModel


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    return nano_language()


def edge_without_head() -> NanoEdge:
    """It asks for logits: both ways then run the same kernels on the same number of rows."""
    edge = nano_edge(up_std=0.05)
    edge.head = None
    return edge


def batch_of(edge: NanoEdge) -> PackedBatch:
    return pack(ragged_examples(edge), edge.parts.processor.image_token_id)


def loss_and_gradients(edge: NanoEdge, language: LanguageHalf, batch: PackedBatch) -> list[Tensor]:
    """The loss, then its gradient for each tensor of the adapters."""
    loss = edge.answer_nll(language, edge(batch), batch).mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(edge.adapters.parameters()))]


async def test_loss_and_gradients_have_the_bits_of_those_computed_by_the_client(language: LanguageModel) -> None:
    edge = edge_without_head()
    batch = batch_of(edge)
    async with remote_language(edge, language) as remote:
        wanted = await asyncio.to_thread(loss_and_gradients, edge, remote, batch)
    async with remote_language(edge, language, loss_on_server=True) as remote:
        got = await asyncio.to_thread(loss_and_gradients, edge, remote, batch)
        inputs_bytes = len(batch.token_ids_S) * 128 * 4
        # One trip: the inputs there, their gradient back, and neither logits nor their gradient.
        assert (remote.traffic.activations_bytes, remote.traffic.gradients_bytes) == (inputs_bytes, inputs_bytes)
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in got)


async def test_with_a_head_of_its_own_the_client_gets_the_same_within_rounding(language: LanguageModel) -> None:
    edge = nano_edge(up_std=0.05)
    assert edge.output_kind == "hidden_states"
    batch = batch_of(edge)
    wanted = loss_and_gradients(edge, language, batch)
    async with remote_language(edge, language, loss_on_server=True) as remote:
        got = await asyncio.to_thread(loss_and_gradients, edge, remote, batch)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


def gradient_of(edge: NanoEdge, language: LanguageHalf, batch: PackedBatch, factors_B: Tensor) -> Tensor:
    inputs_embeds_SD = edge(batch).detach().requires_grad_()
    nll_B = edge.answer_nll(language, inputs_embeds_SD, batch)
    return torch.autograd.grad((factors_B * nll_B).sum(), inputs_embeds_SD)[0]


async def test_a_gradient_that_was_not_foretold_takes_a_second_trip_and_is_right(language: LanguageModel) -> None:
    edge = edge_without_head()
    batch, factors_B = batch_of(edge), torch.tensor([0.5, 2.0, -1.0, 0.25])
    async with remote_language(edge, language) as remote:
        wanted = await asyncio.to_thread(gradient_of, edge, remote, batch, factors_B)
    async with remote_language(edge, language, loss_on_server=True) as remote:
        got = await asyncio.to_thread(gradient_of, edge, remote, batch, factors_B)
        assert remote.traffic.gradients_bytes == 2 * len(batch.token_ids_S) * 128 * 4
    assert torch.equal(got, wanted)
