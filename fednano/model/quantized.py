"""Linear layers whose frozen weights are held as 8 or 4 bits each, by torchao's choice of scales.

The numbers are computed in the model's own type, with one layer's weights made plain at a time: a pass over hundreds of
tokens is bound by its products, and forward and backward see the very same weights. So the gradient of the inputs is
exact for the model that is computed, and nothing is kept of a layer for its backward pass.

O: outputs   I: inputs   G: groups of inputs that share a scale   N: rows
"""

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fednano.errors import ModelInvalid, SettingsInvalid

Precision = Literal["int8", "int4"]
# The least and the largest code.
_RANGES: dict[Precision, tuple[int, int]] = {"int8": (-127, 127), "int4": (-8, 7)}
# Inputs that share a scale: int4 is too coarse for a whole row.
_INT4_GROUP = 32


class QuantizedLinear(nn.Module):
    """Computes what ``nn.Linear`` computes, with rounded weights."""

    def __init__(self, linear: nn.Linear, precision: Precision) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes_OI, scales_OG = _quantized(linear.weight.detach(), precision)
        self._is_packed = precision == "int4"
        # Buffers: they move with the model and count as its weights.
        self.register_buffer("codes", _packed(codes_OI) if self._is_packed else codes_OI)
        self.register_buffer("scales_OG", scales_OG.to(linear.weight.dtype))
        self.bias = linear.bias

    def weight_OI(self) -> Tensor:
        """The weights that are computed with, made anew at each call."""
        codes, scales_OG = cast(Tensor, self.codes), cast(Tensor, self.scales_OG)
        codes_OI = _unpacked(codes) if self._is_packed else codes
        rows, groups = scales_OG.shape
        by_group = codes_OI.view(rows, groups, -1).to(scales_OG.dtype)
        return (by_group * scales_OG[:, :, None]).flatten(1)

    def forward(self, x_NI: Tensor) -> Tensor:
        out_NO: Tensor = _FrozenLinear.apply(x_NI, self)  # type: ignore[no-untyped-call]
        return out_NO


class _FrozenLinear(torch.autograd.Function):
    """Keeps nothing but the layer: a frozen weight's gradient is never asked for."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x_NI, layer.weight_OI(), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, None]:
        return grad_NO @ ctx.layer.weight_OI(), None


def quantize_linears(model: Any, precision: Precision) -> None:
    """Replaces the linear layers of the transformers model, all but its head, which may be its embedding too.

    Raises SettingsInvalid where torchao is not installed, ModelInvalid where the family has no such layers.
    """
    count = 0
    for parent in list(model.base_model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, QuantizedLinear(child, precision))
                count += 1
    if not count:
        message = f"--quantize {precision}: {type(model).__name__} has no linear layers of the usual kind; leave it out"
        raise ModelInvalid(message)


def _quantized(weight_OI: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Codes [O, I] of one byte each and scales [O, G], symmetric about zero."""
    try:
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine
    except ImportError as error:
        message = f"--quantize {precision} needs torchao, which is not installed: pip install 'fednano[quantize]'"
        raise SettingsInvalid(message) from error
    rows, width = weight_OI.shape
    block = (1, width if precision == "int8" else math.gcd(width, _INT4_GROUP))
    bounds = (torch.int8, *_RANGES[precision])
    plain_OI = weight_OI.float()
    scale, zero = choose_qparams_affine(plain_OI, MappingType.SYMMETRIC, block, *bounds, zero_point_dtype=torch.int8)
    scale_OG, zero_OG = scale.reshape(rows, -1), zero.reshape(rows, -1)
    return quantize_affine(plain_OI, block, scale_OG, zero_OG, *bounds), scale_OG


def _packed(codes_OI: Tensor) -> Tensor:
    """Two codes to a byte, the first one in the lower half."""
    return (codes_OI[:, ::2] & 0xF) | (codes_OI[:, 1::2] << 4)


def _unpacked(bytes_OH: Tensor) -> Tensor:
    # A shift to the right keeps the sign.
    return torch.stack(((bytes_OH << 4) >> 4, bytes_OH >> 4), dim=2).flatten(1)
