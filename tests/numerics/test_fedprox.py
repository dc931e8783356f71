"""FedProx's term: nothing where training starts, then exactly mu times the way gone, and nothing at all with mu 0."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_and_split import nano_edge, nano_language, ragged_examples

from fednano.model.adapter import MODALITIES, NanoAdapters
from fednano.model.batch import pack
from fednano.model.language import LanguageModel
from fednano.v1.run_pb2 import TrainConfig
from services.client.proximal import ProximalTerm
from services.client.trainer import LocalTraining, batches, example_order

CONFIG = TrainConfig(local_epochs=3, batch_size=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    return nano_language()


def trained(language: LanguageModel, mu: float, config: TrainConfig = CONFIG) -> tuple[dict[str, torch.Tensor], float]:
    edge = nano_edge(up_std=0.1)
    training = LocalTraining(edge, language, config, proximal_mu=mu)
    training.run(ragged_examples(edge), order=example_order(0, 1, "client-1"), after_step=lambda: None)
    return dict(training.tensors()), training.mean_loss


@settings(max_examples=40, deadline=None)
@given(mu=st.floats(1e-6, 1e3), seed=st.integers(0, 2**31), step=st.floats(1e-4, 1.0))
def test_the_first_step_has_no_proximal_gradient_and_later_ones_exactly_mu_delta(
    mu: float, seed: int, step: float
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    adapters = NanoAdapters(MODALITIES, hidden_size=6, rank=2, alpha=4)
    start = [parameter.detach().clone() for parameter in adapters.parameters()]
    term = ProximalTerm(adapters, mu)
    parameters = list(adapters.parameters())
    assert float(term().detach()) == 0.0
    assert all(not gradient.any() for gradient in torch.autograd.grad(term(), parameters))
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(step * torch.randn_like(parameter))
    for parameter, first, gradient in zip(parameters, start, torch.autograd.grad(term(), parameters), strict=True):
        assert torch.equal(gradient, torch.tensor(mu) * (parameter - first))
    squares = sum(float((one - first).detach().square().sum()) for one, first in zip(parameters, start, strict=True))
    assert float(term().detach()) == pytest.approx(mu / 2 * squares, rel=1e-5)


def test_mu_0_equals_fedavg_bit_for_bit(language: LanguageModel) -> None:
    """FedAvg's local training is written out here, without any term."""
    edge = nano_edge(up_std=0.1)
    examples, order = ragged_examples(edge), example_order(0, 1, "client-1")
    optimizer = torch.optim.AdamW(edge.adapters.parameters(), lr=CONFIG.learning_rate, weight_decay=0.0)
    for indices in batches(len(examples), CONFIG, order):
        batch = pack([examples[index] for index in indices], edge.parts.processor.image_token_id)
        optimizer.zero_grad()
        nll_B = edge.answer_nll(language, edge(batch), batch, weight=1 / len(indices))
        torch.autograd.backward(nll_B.sum() / len(indices))
        optimizer.step()
    tensors, _ = trained(language, 0.0)
    assert all(torch.equal(tensors[f"adapter.{name}"], one) for name, one in edge.adapters.named_parameters())


def test_the_first_step_of_a_training_is_fedavgs_bit_for_bit_and_the_second_is_not(language: LanguageModel) -> None:
    for steps, is_alike in ((1, True), (2, False)):
        config = TrainConfig(local_epochs=3, local_steps=steps, batch_size=2, learning_rate=1e-2)
        (plain, _), (held, _) = (trained(language, mu, config) for mu in (0.0, 100.0))
        assert all(torch.equal(plain[name], tensor) for name, tensor in held.items()) == is_alike


def test_the_reported_loss_is_without_the_term_and_the_adapters_stay_nearer(language: LanguageModel) -> None:
    start = dict(nano_edge(up_std=0.1).adapters.named_parameters())
    ways, losses = [], []
    for mu in (0.0, 1.0, 1000.0):
        tensors, loss = trained(language, mu)
        ways.append(sum(float((tensors[f"adapter.{name}"] - one.detach()).norm()) for name, one in start.items()))
        losses.append(loss)
    assert ways[0] > ways[1] > ways[2]
    # 1000 / 2 times any way gone would drown it.
    assert losses[2] < 3 * losses[0]
