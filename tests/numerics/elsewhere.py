"""A device that is not the CPU, for machines that have none: whatever mixes its tensors with the CPU's fails."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

# Torch knows this one everywhere; here it has numbers, on the CPU.
ELSEWHERE = torch.device("meta")
# What carries tensors between devices.
CARRIERS = frozenset({"aten::_to_copy", "aten::copy_"})


class There(Tensor):
    """A tensor on the device; ``raw`` has its numbers."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "There":
        made = Tensor._make_wrapper_subclass(cls, raw.shape, strides=raw.stride(), dtype=raw.dtype, device=ELSEWHERE)
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, operator: Any, _: Any, arguments: Any = (), named: Any = None) -> Any:
        return _run(operator, arguments, named or {})


class Elsewhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While the block runs, there is the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, operator: Any, _: Any, arguments: Any = (), named: Any = None) -> Any:
        return _run(operator, arguments, named or {})


def _run(operator: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    name = operator.name().partition(".")[0]
    tensors: list[Tensor] = []

    def raw(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return value.raw if isinstance(value, There) else value
        return torch.device("cpu") if isinstance(value, torch.device) else value

    computed = operator(*tree_map(raw, arguments), **tree_map(raw, named))
    is_there = [isinstance(tensor, There) for tensor in tensors if tensor.ndim]
    if any(is_there) and not all(is_there) and name not in CARRIERS:
        shapes = [tuple(tensor.shape) for tensor in tensors if tensor.ndim]
        raise AssertionError(f"{name} mixes devices: {list(zip(shapes, is_there, strict=True))}")
    device = named.get("device")
    if (device != ELSEWHERE) if device is not None else not any(isinstance(tensor, There) for tensor in tensors):
        return computed
    result = tree_map(lambda value: There(value) if isinstance(value, Tensor) else value, computed)
    return return_and_correct_aliasing(operator, arguments, dict(named), result)  # type: ignore[no-untyped-call]
