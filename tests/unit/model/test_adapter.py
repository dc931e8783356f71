"""NanoAdapters: low-rank residual maps."""

import pytest
import torch

from fednano.errors import FieldInvalid
from fednano.model.adapter import NanoAdapter, NanoAdapters


def test_two_adapters_of_rank_64_at_4096_have_exactly_1048576_parameters() -> None:
    adapters = NanoAdapters(["image", "text"], hidden_size=4096, rank=64, alpha=128)
    assert sum(parameter.numel() for parameter in adapters.parameters()) == 1_048_576


def test_a_new_adapter_changes_nothing() -> None:
    x_MD = torch.randn(5, 8)
    assert torch.equal(NanoAdapter(8, 2, 2.0)(x_MD), x_MD)


def test_an_adapter_adds_the_scaled_product() -> None:
    adapters = NanoAdapters(["text"], hidden_size=8, rank=2, alpha=6)
    adapter = adapters.of("text")
    assert adapter is not None
    torch.nn.init.normal_(adapter.up.weight)
    x_MD = torch.randn(5, 8)
    expected = x_MD + 3.0 * x_MD @ adapter.down.weight.T @ adapter.up.weight.T
    torch.testing.assert_close(adapters(x_MD, "text"), expected)


def test_a_modality_without_an_adapter_is_left_alone() -> None:
    x_MD = torch.randn(5, 8)
    assert NanoAdapters(["text"], hidden_size=8, rank=2, alpha=6)(x_MD, "image") is x_MD


def test_state_names_and_shapes_are_those_of_adapter_files() -> None:
    adapters = NanoAdapters(["text", "image"], hidden_size=8, rank=2, alpha=4)
    assert {name: tuple(tensor.shape) for name, tensor in adapters.state_dict().items()} == {
        "image.down.weight": (2, 8),
        "image.up.weight": (8, 2),
        "text.down.weight": (2, 8),
        "text.up.weight": (8, 2),
    }


def test_an_unknown_modality_is_refused_by_name() -> None:
    with pytest.raises(FieldInvalid, match="sound"):
        NanoAdapters(["sound"], hidden_size=8, rank=2, alpha=4)
