"""Around each decoder layer: a look whether to go on, and activation checkpointing.

P: rows of a packed pass   D: hidden size
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fednano.errors import ModelInvalid

# Returns, or raises what ends the pass.
Check = Callable[[], None]
Layer = Callable[[Tensor], Tensor]


class DecoderLayers:
    """Takes its place around the decoder layers of a transformers model. For the one thread that runs the model."""

    def __init__(self, model: Any, *, may_end: bool = True) -> None:
        """``may_end`` False: passes go on to their end, for other processes take part in them."""
        self._may_end = may_end
        self._check: Check = _go_on
        self._checkpointed = False
        for layer in _layers_of(model):
            # On the instance: what the class, or transformers, does around a call stays outside.
            layer.forward = partial(self._run, layer.forward)

    @contextmanager
    def checked(self, check: Check) -> Iterator[None]:
        """While the block runs, ``check`` is called before each layer, forward and backward; it may raise."""
        before, self._check = self._check, check if self._may_end else _go_on
        try:
            yield
        finally:
            self._check = before

    def checkpointed(self) -> AbstractContextManager[None]:
        """Graphs made while the block runs keep each layer's inputs alone; backward computes the layer again.

        The same operations on the same numbers: no bit changes.
        """
        return self.checkpointing(True)

    @contextmanager
    def checkpointing(self, wanted: bool) -> Iterator[None]:
        before, self._checkpointed = self._checkpointed, wanted
        try:
            yield
        finally:
            self._checkpointed = before

    @property
    def is_checkpointed(self) -> bool:
        return self._checkpointed

    def check(self) -> None:
        self._check()

    def _run(self, inner: Callable[..., Any], hidden_1PD: Tensor, *rest: Any, **named: Any) -> Any:
        self._check()
        if not (torch.is_grad_enabled() and hidden_1PD.requires_grad):
            return inner(hidden_1PD, *rest, **named)
        if self._checkpointed:
            return _Checkpointed.apply(hidden_1PD, lambda own_1PD: inner(own_1PD, *rest, **named), self)  # type: ignore[no-untyped-call]
        hidden_1PD.register_hook(self._check_backward)  # type: ignore[no-untyped-call]
        return inner(hidden_1PD, *rest, **named)

    def _check_backward(self, _: Tensor) -> None:
        self._check()


class _Checkpointed(torch.autograd.Function):
    """A layer whose weights are frozen, so that only its hidden states need a gradient."""

    @staticmethod
    def forward(ctx: Any, hidden_1PD: Tensor, layer: Layer, layers: DecoderLayers) -> Tensor:
        ctx.save_for_backward(hidden_1PD)
        ctx.layer, ctx.layers = layer, layers
        outputs = layer(hidden_1PD)
        if not isinstance(outputs, Tensor):
            message = "this model's layers return more than hidden states: start with --activation-checkpointing off"
            raise ModelInvalid(message)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_1PD: Tensor) -> tuple[Tensor, None, None]:
        ctx.layers.check()
        (saved_1PD,) = ctx.saved_tensors
        hidden_1PD = saved_1PD.detach().requires_grad_()
        with torch.enable_grad():
            outputs_1PD = ctx.layer(hidden_1PD)
        return torch.autograd.grad(outputs_1PD, hidden_1PD, grad_1PD)[0], None, None


def _layers_of(model: Any) -> list[Any]:
    """The decoder layers; none where the model's family keeps them in a way that is not known here."""
    count = int(model.config.num_hidden_layers)
    lists = (module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
    return list(next((found for found in lists if len(found) == count), ()))


def _go_on() -> None:
    """The check of a pass that nobody may end."""
