"""Linear layers whose frozen weights are laid out once for oneDNN, about twice as fast as torch's own on a CPU.

torch's own product takes another kernel for one row than for eight; oneDNN's gives a row the same bits however few
there are, but for one row alone.

N: rows   I: inputs   O: outputs
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

# What a layout is made for; it may be used with any number of rows.
_ROWS = 8


class PackedLinear(nn.Module):
    """Computes what ``nn.Linear`` with these weights computes, to rounding; gradients reach the inputs alone.

    Unless it is ``differentiable`` it has half the layouts, and no gradient.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, differentiable: bool) -> None:
        super().__init__()
        # No buffers: a layout has no strides, and nothing may move or save it.
        self._weight = _laid_out(weight_OI)
        self._transposed = _laid_out(weight_OI.t()) if differentiable else None
        self._bias_O = bias_O

    def forward(self, x_NI: Tensor) -> Tensor:
        if self._transposed is None or not (torch.is_grad_enabled() and x_NI.requires_grad):
            # Decoding feels what a differentiable function costs.
            return _product(x_NI, self._weight, self._bias_O)
        out_NO: Tensor = _PackedProduct.apply(x_NI, self._weight, self._transposed, self._bias_O)  # type: ignore[no-untyped-call]
        return out_NO


class _PackedProduct(torch.autograd.Function):
    """Needs nothing but the weights for its backward pass."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight: Tensor, transposed: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return _product(x_NI, weight, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, None, None, None]:
        return _product(grad_NO.contiguous(), ctx.transposed, None), None, None, None


def can_pack(model: Any) -> bool:
    """Whether this build of torch has such layers, and the model is where and of the type that they are for."""
    is_plain = model.device.type == "cpu" and model.dtype == torch.float32
    return is_plain and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def packed_bytes(model: Any, *, differentiable: bool) -> int:
    """What the layouts of all weights that can be packed take."""
    copies = 2 if differentiable else 1
    return sum(copies * weight.nbytes for weight in map(_weight, model.modules()) if weight is not None)


def pack_linears(model: Any, *, differentiable: bool) -> None:
    """Replaces the linear layers within ``model`` by packed ones."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            weight = _weight(child)
            if weight is not None:
                weight_OI = weight.t() if isinstance(child, Conv1D) else weight
                setattr(parent, name, PackedLinear(weight_OI, child.bias, differentiable=differentiable))


def _laid_out(weight: Tensor) -> Tensor:
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    return laid_out


def _product(x_NI: Tensor, weight: Tensor, bias_O: Tensor | None) -> Tensor:
    out_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight, bias_O, "none", [], "")
    return out_NO


def _weight(module: Any) -> Tensor | None:
    """Of the layers that can be packed; quantised and distributed ones have tensors of a type of their own."""
    is_linear = type(module) in (nn.Linear, Conv1D) and type(module.weight) is nn.Parameter
    return module.weight if is_linear else None
