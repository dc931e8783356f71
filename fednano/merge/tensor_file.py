"""Parts of float32 tensors read from a safetensors file into buffers that are there already.

The library maps a whole file, or copies a whole tensor; over a thousand files that is memory that grows with the
clients. Here one open file and the caller's buffer are all. Files were checked by the library when they were accepted.
Dimensions: I the flattened elements of one tensor.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fednano.adapter_layout import Float32Array

ITEM_BYTES = 4
LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where in the file a tensor starts, and its shape."""

    offset_bytes: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A file and the places of its tensors by name. It is open only while something is read."""

    path: Path
    places: Mapping[str, TensorPlace]

    def read(self, name: str, start: int, out_I: Float32Array) -> None:
        """Fills ``out_I`` with the flattened tensor's elements from ``start`` on; raises EOFError at the file's end."""
        position = self.places[name].offset_bytes + start * ITEM_BYTES
        left = out_I.data.cast("B")
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            while left:
                count = os.preadv(descriptor, [left], position)
                if count == 0:
                    raise EOFError(f"{self.path} ends within tensor {name}")
                left, position = left[count:], position + count
        finally:
            os.close(descriptor)


def open_tensor_file(path: Path) -> TensorFile:
    """Reads the header; raises ValueError for a tensor that is not float32."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = json.loads(file.read(header_bytes))
    places: dict[str, TensorPlace] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "F32":
            raise ValueError(f"{path}: tensor {name} is {entry['dtype']}, not F32")
        offset_bytes = LENGTH_BYTES + header_bytes + entry["data_offsets"][0]
        places[name] = TensorPlace(offset_bytes=offset_bytes, shape=tuple(entry["shape"]))
    return TensorFile(path=path, places=places)
