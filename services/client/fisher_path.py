"""Fisher information along local training: what each step's gradients say of it, gathered as they come.

S: tokens of a packed batch   D: hidden size
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fednano.fisher import FisherMean
from fednano.model.batch import PackedBatch
from fednano.model.edge import LanguageHalf, NanoEdge
from services.client.fisher_pass import batch_halves, input_gradients


class FisherPath:
    """Gathers over the steps of one training. Each example's gradient is at the adapters of its step."""

    def __init__(self, labels: Callable[[int], torch.Generator] | None = None) -> None:
        """``labels`` makes the generator that draws a step's labels; without it they are the true ones."""
        self._labels = labels
        self.mean = FisherMean()

    def add(
        self, edge: NanoEdge, language: LanguageHalf, batch: PackedBatch, gradients_SD: Tensor, *, step: int
    ) -> None:
        """``gradients_SD`` is of the MEAN of the examples' losses, as a training step has it. Before the weights move.

        Drawn labels take a forward and a backward pass of their own.
        """
        if self._labels is None:
            gradients_SD = gradients_SD * batch.example_count
        else:
            gradients_SD = input_gradients(edge, language, batch, self._labels(step))
        self.mean.add(batch_halves(edge, batch, gradients_SD, self.mean.example_count), batch.example_count)
