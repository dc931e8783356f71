"""The tensors of a checkpoint, found by the headers of its safetensors files: where each lies, and its bytes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from fednano.errors import ModelInvalid
from fednano.model.cutting.source import Source

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
BLOCK_BYTES = 8 << 20
# The length of the header, in front of it.
_PREFIX_BYTES = 8
# As the format's own reader bounds it.
_MOST_HEADER_BYTES = 100_000_000
# What the names of the types that safetensors has are in torch.
TORCH_TYPES: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """``dtype`` as safetensors names it; the bytes are those from ``start`` of the file on."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


class Weights:
    """All tensors of a checkpoint by their names. Only the headers are read until bytes are asked for."""

    def __init__(self, source: Source, places: Mapping[str, TensorPlace]) -> None:
        self.source = source
        self.places = places

    def blocks(self, place: TensorPlace) -> Iterator[bytes]:
        """The tensor's bytes, a bounded piece at a time."""
        for start in range(0, place.size_bytes, BLOCK_BYTES):
            yield self.piece(place, start, min(BLOCK_BYTES, place.size_bytes - start))

    def piece(self, place: TensorPlace, start: int, length: int) -> bytes:
        found = self.source.read_at(place.file, place.start + start, length)
        if len(found) != length:
            raise _corrupt(self.source, place.file, "it ends in the middle of a tensor")
        return found


def read_headers(source: Source) -> Weights:
    """Raises ModelInvalid for a shard that is missing, cut short or no safetensors file, and for a missing tensor."""
    index = _index(source)
    if index is None:
        return Weights(source, _header(source, SINGLE_FILE))
    headers = {file: _header(source, file) for file in sorted(set(index.values()))}
    places = {}
    for name, file in index.items():
        if name not in headers[file]:
            message = f"{source.name}: {file} lacks the tensor {name}, which {INDEX_FILE} puts there"
            raise ModelInvalid(message, file=file, tensor=name)
        places[name] = headers[file][name]
    return Weights(source, places)


def _index(source: Source) -> dict[str, str] | None:
    content = source.read(INDEX_FILE)
    if content is None:
        return None
    try:
        index = json.loads(content)["weight_map"]
        return {str(name): str(file) for name, file in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelInvalid(f"{source.name}: {INDEX_FILE} has no weight_map ({error!r})", file=INDEX_FILE) from error


def _header(source: Source, file: str) -> dict[str, TensorPlace]:
    size_bytes = source.size_bytes(file)
    header_bytes = int.from_bytes(source.read_at(file, 0, _PREFIX_BYTES), "little")
    data_start = _PREFIX_BYTES + header_bytes
    if header_bytes > _MOST_HEADER_BYTES or data_start > size_bytes:
        raise _corrupt(source, file, "its header would be longer than the file")
    try:
        header = json.loads(source.read_at(file, _PREFIX_BYTES, header_bytes))
        places = {name: _place(file, said, data_start) for name, said in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(source, file, f"its header cannot be read: {error!r}") from error
    end = data_start
    for place in sorted(places.values(), key=lambda place: (place.start, place.size_bytes)):
        if place.start != end:
            raise _corrupt(source, file, "its tensors overlap, or leave a gap")
        end += place.size_bytes
    if end != size_bytes:
        raise _corrupt(source, file, f"it has {size_bytes} bytes where its header says {end}")
    return places


def _place(file: str, said: Mapping[str, Any], data_start: int) -> TensorPlace:
    start, end = said["data_offsets"]
    dtype, shape = str(said["dtype"]), tuple(said["shape"])
    if not 0 <= start <= end:
        raise ValueError(f"offsets {start} to {end}")
    if dtype in _WIDTHS and prod(shape) * _WIDTHS[dtype] != end - start:
        raise ValueError(f"{end - start} bytes for {list(shape)} of {dtype}")
    return TensorPlace(file=file, dtype=dtype, shape=shape, start=data_start + start, size_bytes=end - start)


def _corrupt(source: Source, file: str, why: str) -> ModelInvalid:
    return ModelInvalid(f"{source.name}: {file} is damaged: {why}; fetch it again", file=file)
