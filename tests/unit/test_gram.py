"""Gram matrices: what is collected, and the two forms in which it travels."""

import pytest
import torch
from torch import Tensor

from fednano.gram import GramMean, pack_grams
from fednano.gram_layout import MOST_ADAPTERS, gram_shapes


def inputs(count: int, hidden: int) -> Tensor:
    torch.set_num_threads(1)
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(2))


def test_it_is_the_mean_over_examples_of_the_sum_over_tokens() -> None:
    x_MD, means = inputs(7, 3), GramMean()
    means.add("text", x_MD[:4])
    means.add("text", x_MD[4:])
    expected = torch.einsum("md,me->de", x_MD.double(), x_MD.double()) / 2
    torch.testing.assert_close(means.mean(2)["text"], expected)


@pytest.mark.parametrize(("hidden", "rank"), [(128, 16), (511, 16), (512, 16), (4096, 64), (4096, 16), (8, 1)])
def test_a_file_is_never_larger_than_eight_adapters(hidden: int, rank: int) -> None:
    shapes = gram_shapes(["image", "text"], hidden, rank)
    elements = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
    assert elements <= MOST_ADAPTERS * 2 * 2 * rank * hidden
    assert ("image.gram" in shapes) == (hidden + 1 <= 32 * rank)


def test_a_small_one_travels_as_its_symmetric_half() -> None:
    gram_DD = (inputs(9, 4).T @ inputs(9, 4)).double()
    packed = pack_grams({"image": gram_DD}, gram_shapes(["image"], 4, 4))
    rows, columns = torch.triu_indices(4, 4)
    torch.testing.assert_close(packed.tensors["image.gram"], gram_DD[rows, columns].float(), rtol=0, atol=0)
    assert packed.relative_error < 1e-7


def test_a_wide_one_travels_as_a_low_rank_with_a_diagonal_and_its_error_is_measured() -> None:
    hidden, rank = 48, 1
    shapes = gram_shapes(["image"], hidden, rank)
    gram_DD = (inputs(60, hidden).T @ inputs(60, hidden)).double()
    packed = pack_grams({"image": gram_DD}, shapes)
    assert {name: tuple(tensor.shape) for name, tensor in packed.tensors.items()} == dict(shapes)
    factor_DL, diagonal_D = (packed.tensors[f"image.gram.{part}"].double() for part in ("factor", "diagonal"))
    found_DD = factor_DL @ factor_DL.T + diagonal_D.diag()
    error = float((found_DD - gram_DD).norm() / gram_DD.norm())
    assert packed.relative_error == pytest.approx(error, rel=1e-6)
    assert 0.01 < error < 0.5
    torch.testing.assert_close(found_DD.diagonal(), gram_DD.diagonal(), rtol=1e-4, atol=1e-4)


def test_a_wide_one_of_low_rank_travels_without_loss() -> None:
    x_MD = inputs(5, 48)
    packed = pack_grams({"image": (x_MD.T @ x_MD).double()}, gram_shapes(["image"], 48, 1))
    assert packed.relative_error < 1e-5
