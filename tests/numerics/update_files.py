"""Updates as files, for tests of the merge."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fednano.adapter_layout import Float32Array
from fednano.merge.updates import MergeUpdate

Tensors = Mapping[str, Float32Array]


def write_update(
    folder: Path, client: str, adapter: Tensors, fisher: Tensors | None = None, *, example_count: int = 1
) -> MergeUpdate:
    """Both files, named after the client; the same client again overwrites them."""
    adapter_path, fisher_path = folder / f"{client}.adapter", folder / f"{client}.fisher"
    save_file(dict(adapter), adapter_path)
    if fisher is not None:
        save_file(dict(fisher), fisher_path)
    return MergeUpdate(
        client=client,
        example_count=example_count,
        adapter=adapter_path,
        fisher=None if fisher is None else fisher_path,
    )


def write_base(folder: Path, like: Tensors) -> Path:
    """An adapter of zeros with the same tensors."""
    path = folder / "base"
    save_file({name: np.zeros_like(tensor) for name, tensor in like.items()}, path)
    return path


def distance(one: Tensors, other: Tensors) -> float:
    """L2 over all tensors, in float64."""
    squares = [float(np.square(one[name].astype(np.float64) - other[name]).sum()) for name in sorted(one)]
    return float(np.sqrt(sum(squares)))
