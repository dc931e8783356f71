"""What a file of Gram matrices holds: for each modality the symmetric half, or a low rank and a diagonal, float32.

Numpy only: the aggregator checks and reads these files without torch.
Dimensions: D hidden size · R rank of the adapters · L rank of a factor.
"""

from collections.abc import Mapping, Sequence

# No file of Gram matrices is larger than so many of the run's adapters.
MOST_ADAPTERS = 8


def gram_shapes(modalities: Sequence[str], hidden_size: int, rank: int) -> Mapping[str, tuple[int, ...]]:
    """The shape of each tensor: "{modality}.gram", the upper triangle by rows, where it is small enough.

    Otherwise "{modality}.gram.factor" [D, L] and "{modality}.gram.diagonal" [D] stand for
    factor @ factor.T + diag(diagonal), with the largest L that fits.
    """
    half, most = hidden_size * (hidden_size + 1) // 2, MOST_ADAPTERS * 2 * rank * hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for modality in sorted(modalities):
        if half <= most:
            shapes[f"{modality}.gram"] = (half,)
        else:
            shapes[f"{modality}.gram.diagonal"] = (hidden_size,)
            shapes[f"{modality}.gram.factor"] = (hidden_size, most // hidden_size - 1)
    return shapes
