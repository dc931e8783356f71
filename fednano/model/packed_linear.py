"""Linear layers with weights laid out once for oneDNN: about twice as fast for few rows, each row always the same bits.

torch's own product takes another kernel for one row than for eight; oneDNN's gives a row the same bits however many
there are. Only for passes without gradients. The layout is a copy of the weights.

N: rows   I: inputs   O: outputs
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# What a layout is made for; it may be used with any number of rows.
_ROWS = 8


class PackedLinear(nn.Module):
    """Computes what ``nn.Linear`` with these weights computes, to rounding."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        # No buffer: its layout has no strides, and nothing may move or save it.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), _ROWS)
        self._bias_O = bias_O

    def forward(self, x_NI: Tensor) -> Tensor:
        out_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, self._bias_O, "none", [], "")
        return out_NO


def can_pack(model: Any) -> bool:
    """Whether this build of torch has such layers, and the model is where and of the type that they are for."""
    is_plain = model.device.type == "cpu" and model.dtype == torch.float32
    return is_plain and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def packed_bytes(model: Any) -> int:
    """What the copies of all weights that would be packed take."""
    return sum(weight.nbytes for weight in map(_weight, model.modules()) if weight is not None)


def pack_linears(model: Any) -> None:
    """Replaces the linear layers within ``model`` by packed ones."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            weight = _weight(child)
            if weight is not None:
                weight_OI = weight.t() if isinstance(child, Conv1D) else weight
                setattr(parent, name, PackedLinear(weight_OI, child.bias))


def _weight(module: Any) -> Tensor | None:
    """Of the layers that can be packed; quantised ones have tensors of a type of their own."""
    is_linear = type(module) in (nn.Linear, Conv1D) and type(module.weight) is nn.Parameter
    return module.weight if is_linear else None
