"""Packed layers compute what plain ones do; whole models of them are in test_language_families.py."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fednano.model.packed_linear import PackedLinear, pack_linears, packed_bytes


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_outputs_and_gradients_are_those_of_the_plain_layer(rows: int, has_bias: bool) -> None:
    torch.manual_seed(rows)
    plain = nn.Linear(24, 40, bias=has_bias).requires_grad_(False)
    packed = PackedLinear(plain.weight, plain.bias, differentiable=True)
    leaves = [torch.ones(rows, 24).mul_(torch.arange(24)).requires_grad_() for _ in range(2)]
    outputs = [layer(leaf) for layer, leaf in zip((plain, packed), leaves, strict=True)]
    grads = [torch.autograd.grad(out.square().sum(), leaf)[0] for out, leaf in zip(outputs, leaves, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_only_plain_frozen_layers_are_replaced_and_counted() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 6), "b": Conv1D(6, 4), "c": nn.Embedding(5, 4), "d": nn.LayerNorm(4)})
    assert packed_bytes(model, differentiable=True) == 2 * 2 * 4 * 6 * 4
    pack_linears(model, differentiable=True)
    assert [type(module) for module in model.values()] == [PackedLinear, PackedLinear, nn.Embedding, nn.LayerNorm]
    assert packed_bytes(model, differentiable=True) == 0


def test_a_layer_for_decoding_alone_has_half_the_layouts_and_no_gradient() -> None:
    plain = nn.Linear(24, 40).requires_grad_(False)
    assert 2 * packed_bytes(plain, differentiable=False) == packed_bytes(plain, differentiable=True)
    packed = PackedLinear(plain.weight, plain.bias, differentiable=False)
    rows_NI = torch.ones(3, 24, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(packed(rows_NI), plain(rows_NI))
