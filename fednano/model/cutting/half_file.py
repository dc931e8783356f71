"""Writing a half's weights: tensors are copied, byte by byte and a block at a time, into one safetensors file."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from fednano.model.cutting.shards import TensorPlace, Weights

_ALIGNED_BYTES = 8


def write_weights(path: Path, weights: Weights, places: Mapping[str, TensorPlace]) -> str:
    """The SHA-256 of the file. ``places`` are by the names that tensors get. Never more than a block in memory."""
    # Wider types first, so that every tensor stands at a multiple of its type's width.
    order = sorted(places, key=lambda name: (-_width(places[name]), name))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in _blocks(weights, [(name, places[name]) for name in order]):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _blocks(weights: Weights, places: list[tuple[str, TensorPlace]]) -> Iterator[bytes]:
    yield _header(places)
    for _, place in places:
        yield from weights.blocks(place)


def _header(places: list[tuple[str, TensorPlace]]) -> bytes:
    # transformers asks for a format.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, place in places:
        offsets = [start, start + place.size_bytes]
        header[name] = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": offsets}
        start += place.size_bytes
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % _ALIGNED_BYTES)
    return len(content).to_bytes(8, "little") + content


def _width(place: TensorPlace) -> int:
    count = 1
    for length in place.shape:
        count *= length
    return place.size_bytes // count if count else 0
