"""Per-example Fisher information is that of a loop of batch-1 passes and of torch.func's per-sample gradients.

B: batch   T: most tokens of an example   M: tokens of all   D: hidden size   R: rank
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, vmap
from whole_and_split import nano_edge, nano_language, ragged_examples

from fednano.fisher import AdapterPass, squared_gradient_sums
from fednano.model.adapter import NanoAdapter
from fednano.model.batch import EncodedExample, pack
from fednano.model.edge import NanoEdge
from fednano.model.language import LanguageModel
from fednano.v1.run_pb2 import TrainConfig
from services.client.fisher_pass import estimate_fisher, fisher_information, input_gradients
from services.client.fisher_path import FisherPath
from services.client.trainer import LocalTraining, example_order

D, R = 8, 3


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    return nano_language()


def loss_of(weights: dict[str, Tensor], adapter: NanoAdapter, x_TD: Tensor, is_token_T: Tensor) -> Tensor:
    """A loss of one example that is not linear in its tokens; padding has no part in it."""
    adapted_TD = functional_call(adapter, weights, (x_TD,))
    values_T = (adapted_TD * torch.linspace(-1, 1, D)).sum(1).tanh() + adapted_TD.square().mean(1)
    return (values_T * is_token_T).sum().exp()


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_per_example_fisher_equals_torch_funcs_per_sample_gradients(lengths: list[int], seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    adapter = NanoAdapter(D, R, scale=2.0)
    torch.nn.init.normal_(adapter.up.weight, std=0.3)
    weights = {name: parameter.detach() for name, parameter in adapter.named_parameters()}
    is_token_BT = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    x_BTD = 0.3 * torch.randn(len(lengths), max(lengths), D) * is_token_BT[..., None]
    per_sample = vmap(grad(loss_of), in_dims=(None, None, 0, 0))(weights, adapter, x_BTD, is_token_BT.float())
    down, up = squared_gradient_sums(
        _seen(adapter, x_BTD, is_token_BT), weights["down.weight"], weights["up.weight"], adapter.scale
    )
    torch.testing.assert_close(down.float(), per_sample["down.weight"].square().sum(0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(up.float(), per_sample["up.weight"].square().sum(0), rtol=1e-3, atol=1e-5)


def _seen(adapter: NanoAdapter, x_BTD: Tensor, is_token_BT: Tensor) -> AdapterPass:
    """The batch as the client has it: packed, with the gradient of the sum of the losses at the adapter's output."""
    outputs_BTD = adapter(x_BTD).detach().requires_grad_()
    values_BT = (outputs_BTD * torch.linspace(-1, 1, D)).sum(2).tanh() + outputs_BTD.square().mean(2)
    losses_B = (values_BT * is_token_BT).sum(1).exp()
    (gradients_BTD,) = torch.autograd.grad(losses_B.sum(), outputs_BTD)
    return AdapterPass(
        inputs_MD=x_BTD[is_token_BT],
        output_gradients_MD=gradients_BTD[is_token_BT],
        example_index_M=is_token_BT.nonzero()[:, 0],
        example_count=len(x_BTD),
    )


def test_per_example_fisher_equals_a_loop_of_batch_1_passes_on_ragged_examples(language: LanguageModel) -> None:
    edge = nano_edge(up_std=0.1)
    examples = ragged_examples(edge)
    assert len({len(one.prompt_ids) for one in examples}) > 1
    found = fisher_information(edge, language, examples, max_pass_tokens=1000, after_batch=lambda: None)
    for name, expected in by_loop(edge, language, examples).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-9)


def by_loop(edge: NanoEdge, language: LanguageModel, examples: list[EncodedExample]) -> dict[str, Tensor]:
    """Each example alone through the whole model, its gradients by autograd."""
    named = dict(edge.adapters.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for example in examples:
        batch = pack([example], edge.parts.processor.image_token_id)
        nll = edge.answer_nll(language, edge(batch), batch).sum()
        for name, gradient in zip(named, torch.autograd.grad(nll, list(named.values())), strict=True):
            sums[name] += gradient.square()
    return {name: total / len(examples) for name, total in sums.items()}


def test_how_examples_are_batched_changes_nothing_but_rounding(language: LanguageModel) -> None:
    edge = nano_edge(up_std=0.1)
    examples = ragged_examples(edge)
    alone, together = (
        estimate_fisher(edge, language, examples, max_pass_tokens=most, after_batch=lambda: None) for most in (1, 1000)
    )
    for name, values in alone.mean().items():
        torch.testing.assert_close(values, together.mean()[name], rtol=1e-3, atol=1e-9)
    assert alone.reliability() == pytest.approx(together.reliability(), abs=1e-3)


def test_drawn_labels_are_the_models_own_and_the_same_for_the_same_generator(language: LanguageModel) -> None:
    edge = nano_edge(up_std=0.1)
    batch = pack(ragged_examples(edge), edge.parts.processor.image_token_id)

    def drawn(seed: int) -> Tensor:
        return input_gradients(edge, language, batch, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    # The score has no mean: over many draws the gradients cancel, as those of the true labels do not.
    draws = torch.stack([drawn(seed) for seed in range(30)])
    assert float(draws.mean(0).norm()) < 0.4 * float(draws.square().sum(dim=(1, 2)).mean().sqrt())
    assert float(draws.mean(0).norm()) < float(input_gradients(edge, language, batch, None).norm())


@pytest.mark.parametrize("is_drawn", [False, True])
def test_gathered_while_training_it_is_the_estimate_of_a_pass_where_nothing_moves(
    language: LanguageModel, is_drawn: bool
) -> None:
    edge = nano_edge(up_std=0.1)
    examples = ragged_examples(edge)
    config = TrainConfig(local_epochs=1, batch_size=3, learning_rate=1e-12)
    path = FisherPath((lambda step: torch.Generator().manual_seed(step)) if is_drawn else None)
    training = LocalTraining(edge, language, config, fisher=path)
    training.run(examples, order=example_order(0, 1, "client-1"), after_step=lambda: None)
    assert path.mean.example_count == len(examples)
    standing = fisher_information(edge, language, examples, max_pass_tokens=1000, after_batch=lambda: None)
    for name, values in path.mean.mean().items():
        is_same = torch.allclose(values, standing[name], rtol=1e-3, atol=1e-8)
        assert is_same != is_drawn
