"""Activations by the names that transformers' settings have for them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fednano.errors import ModelInvalid

Activation = Callable[[Tensor], Tensor]


def activation(name: str) -> Activation:
    known: dict[str, Activation] = {
        "gelu": F.gelu,
        "gelu_pytorch_tanh": _gelu_tanh,
        "quick_gelu": _quick_gelu,
        "relu": F.relu,
        "silu": F.silu,
    }
    if name not in known:
        raise ModelInvalid(f"the activation {name} is not one of: {', '.join(sorted(known))}", field="hidden_act")
    return known[name]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
