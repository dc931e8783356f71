"""The batched Fisher information is that of a loop over examples, one backward pass each."""

import math

import pytest
import torch
from torch import Tensor

from fednano.fisher import AdapterPass, FisherMean, squared_gradient_halves, squared_gradient_sums

D, R, SCALE = 12, 3, 2.0
LENGTHS = (4, 1, 7, 2)


def losses(adapted_MD: Tensor, example_index_M: Tensor) -> Tensor:
    """A loss for each example that is not linear in its tokens."""
    values_M = (adapted_MD * torch.linspace(-1, 1, D)).sum(1).tanh() + adapted_MD.square().mean(1)
    return torch.zeros(len(LENGTHS)).index_add(0, example_index_M, values_M).exp()


def adapted(x_MD: Tensor, down_RD: Tensor, up_DR: Tensor) -> Tensor:
    return x_MD + SCALE * x_MD @ down_RD.T @ up_DR.T


def by_loop(x_MD: Tensor, index_M: Tensor, down_RD: Tensor, up_DR: Tensor) -> list[Tensor]:
    sums = [torch.zeros_like(down_RD), torch.zeros_like(up_DR)]
    for example in range(len(LENGTHS)):
        weights = [down_RD.clone().requires_grad_(), up_DR.clone().requires_grad_()]
        own_M = index_M == example
        loss = losses(adapted(x_MD[own_M], *weights), index_M[own_M])[example]
        for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
            total += gradient.square()
    return [total / len(LENGTHS) for total in sums]


def batch() -> tuple[AdapterPass, Tensor, Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    index_M = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    x_MD, down_RD, up_DR = torch.randn(len(index_M), D) * 0.3, torch.randn(R, D) * 0.3, torch.randn(D, R) * 0.3
    outputs_MD = adapted(x_MD, down_RD, up_DR).requires_grad_()
    (gradients_MD,) = torch.autograd.grad(losses(outputs_MD, index_M).sum(), outputs_MD)
    seen = AdapterPass(
        inputs_MD=x_MD, output_gradients_MD=gradients_MD, example_index_M=index_M, example_count=len(LENGTHS)
    )
    return seen, down_RD, up_DR


def test_ragged_batches_give_what_a_loop_over_single_examples_gives() -> None:
    seen, down_RD, up_DR = batch()
    down, up = squared_gradient_sums(seen, down_RD, up_DR, SCALE)
    expected_down, expected_up = by_loop(seen.inputs_MD, seen.example_index_M, down_RD, up_DR)
    torch.testing.assert_close((down / len(LENGTHS)).float(), expected_down)
    torch.testing.assert_close((up / len(LENGTHS)).float(), expected_up)


def test_it_is_not_the_square_of_the_batch_gradient() -> None:
    seen, down_RD, up_DR = batch()
    _, up = squared_gradient_sums(seen, down_RD, up_DR, SCALE)
    batch_gradient = SCALE * seen.output_gradients_MD.T @ (seen.inputs_MD @ down_RD.T)
    assert not torch.allclose(up.float(), batch_gradient.square())


def test_an_example_without_tokens_of_the_modality_adds_nothing() -> None:
    seen, down_RD, up_DR = batch()
    more = AdapterPass(
        inputs_MD=seen.inputs_MD,
        output_gradients_MD=seen.output_gradients_MD,
        example_index_M=seen.example_index_M,
        example_count=len(LENGTHS) + 1,
    )
    for one, other in zip(
        squared_gradient_sums(seen, down_RD, up_DR, SCALE),
        squared_gradient_sums(more, down_RD, up_DR, SCALE),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_mean_is_over_all_examples_of_all_batches() -> None:
    mean = FisherMean()
    mean.add({"b": halves(4.0, 2.0), "a": halves(3.0, 0.0)}, 2)
    mean.add({"b": halves(0.0, 3.0), "a": halves(0.0, 0.0)}, 1)
    assert {name: tensor.tolist() for name, tensor in mean.mean().items()} == {"a": [1.0], "b": [3.0]}
    assert list(mean.mean()) == ["a", "b"]


def test_every_other_example_is_of_the_other_half_across_batches() -> None:
    seen, down_RD, up_DR = batch()
    for first_index in (0, 1):
        found = squared_gradient_halves(seen, down_RD, up_DR, SCALE, first_index=first_index)[1]
        even, odd = (squared_gradient_sums(only(seen, kept), down_RD, up_DR, SCALE)[1] for kept in ((0, 2), (1, 3)))
        torch.testing.assert_close(found, torch.stack([odd, even] if first_index else [even, odd]))


def only(seen: AdapterPass, kept: tuple[int, ...]) -> AdapterPass:
    """The pass with the gradients of all other examples at zero."""
    is_kept_M = torch.isin(seen.example_index_M, torch.tensor(kept))
    return AdapterPass(
        inputs_MD=seen.inputs_MD,
        output_gradients_MD=seen.output_gradients_MD * is_kept_M[:, None],
        example_index_M=seen.example_index_M,
        example_count=seen.example_count,
    )


def test_split_half_reliability_is_the_halves_correlation_for_twice_as_many_examples() -> None:
    mean = FisherMean()
    assert math.isnan(mean.reliability())
    even, odd = torch.tensor([1.0, 2.0, 3.0, 7.0]), torch.tensor([2.0, 1.0, 5.0, 4.0])
    mean.add({"a": torch.stack([even[:2], odd[:2]]), "b": torch.stack([even[2:], odd[2:]])}, 6)
    correlation = float(torch.corrcoef(torch.stack([even, odd]))[0, 1])
    assert mean.reliability() == pytest.approx(2 * correlation / (1 + correlation), rel=1e-6)


def test_one_example_has_no_reliability_and_two_alike_have_all() -> None:
    alone, alike = FisherMean(), FisherMean()
    alone.add({"a": torch.tensor([[1.0, 2.0], [0.0, 0.0]])}, 1)
    alike.add({"a": torch.tensor([[1.0, 2.0], [1.0, 2.0]])}, 2)
    assert math.isnan(alone.reliability())
    assert alike.reliability() == pytest.approx(1.0)


def halves(even: float, odd: float) -> Tensor:
    return torch.tensor([[even], [odd]], dtype=torch.float64)
