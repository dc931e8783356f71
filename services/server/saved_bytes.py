"""How many bytes autograd keeps of a pass, measured while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fednano.model.language import LanguageModel, storage_of


class SavedBytes:
    """Counts each storage once, and no weight: those are there anyway."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._storages: dict[int, int] = {}

    @property
    def size_bytes(self) -> int:
        return sum(self._storages.values())

    @contextmanager
    def counted(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self._note, _unchanged):
            yield

    def add(self, tensor: Tensor) -> None:
        if not self._model.is_weight(tensor):
            storage = storage_of(tensor)
            self._storages[storage.data_ptr()] = storage.nbytes()

    def _note(self, tensor: Tensor) -> Tensor:
        self.add(tensor)
        # Not the tensor itself, which may be the node's own output: it would keep its node alive for ever.
        return tensor.detach()


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
