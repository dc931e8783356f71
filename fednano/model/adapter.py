"""NanoAdapters: the low-rank residual maps that federated clients train, one a modality (Eq. 3 of the paper).

D: hidden size   R: rank
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fednano.errors import FieldInvalid

IMAGE, TEXT = MODALITIES = ("image", "text")


class NanoAdapter(nn.Module):
    """x + scale * up(down(x)). ``up`` is zero at the start, so that a new adapter changes nothing."""

    def __init__(self, hidden_size: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, hidden_size, bias=False)
        nn.init.normal_(self.down.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x_MD: Tensor) -> Tensor:
        delta_MD: Tensor = self.up(self.down(x_MD))
        return x_MD + self.scale * delta_MD


class NanoAdapters(nn.Module):
    """The adapters by modality; one that is absent is the identity.

    State names are those of adapter files: ``{modality}.down.weight`` [R, D] and ``{modality}.up.weight`` [D, R].
    """

    def __init__(self, modalities: Sequence[str], *, hidden_size: int, rank: int, alpha: float) -> None:
        super().__init__()
        unknown = sorted(set(modalities) - set(MODALITIES))
        if unknown:
            message = f"adapter.modalities has {', '.join(unknown)}, but a model has only: {', '.join(MODALITIES)}"
            raise FieldInvalid(message, field="adapter.modalities")
        for modality in sorted(modalities):
            self.add_module(modality, NanoAdapter(hidden_size, rank, alpha / rank))

    def of(self, modality: str) -> NanoAdapter | None:
        """The adapter of a modality, None where it has none."""
        adapter = self._modules.get(modality)
        return adapter if isinstance(adapter, NanoAdapter) else None

    def forward(self, x_MD: Tensor, modality: str) -> Tensor:
        adapter = self.of(modality)
        if adapter is None:
            return x_MD
        adapted_MD: Tensor = adapter(x_MD)
        return adapted_MD
