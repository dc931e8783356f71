"""Fisher information along local training: what each step's gradients say of it, gathered as they come.

S: tokens of a packed batch   D: hidden size
"""

from collections.abc import Callable, Mapping

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
        self._drawing: tuple[int, torch.Generator] | None = None
        self.mean = FisherMean()

    def add(
        self,
        edge: NanoEdge,
        language: LanguageHalf,
        batch: PackedBatch,
        gradients_SD: Tensor,
        *,
        step: int,
        step_examples: int = 0,
    ) -> None:
        """``gradients_SD`` is of the MEAN of the examples' losses, as a training step has it. Before the weights move.

        A step may come in several batches: ``step_examples`` is how many examples it has, 0: those of ``batch``. Drawn
        labels take a forward and a backward pass of their own.
        """
        if self._labels is None:
            gradients_SD = gradients_SD * (step_examples or batch.example_count)
        else:
            gradients_SD = input_gradients(edge, language, batch, self._generator(step))
        self.mean.add(batch_halves(edge, batch, gradients_SD, self.mean.example_count), batch.example_count)

    def restore(self, halves: Mapping[str, Tensor], example_count: int) -> None:
        """Goes back to where ``halves`` were taken of ``mean``; a step that was under way is begun anew."""
        self._drawing = None
        self.mean.restore(halves, example_count)

    def _generator(self, step: int) -> torch.Generator:
        """The step's, wherever it has come to."""
        assert self._labels is not None
        if self._drawing is None or self._drawing[0] != step:
            self._drawing = (step, self._labels(step))
        return self._drawing[1]
