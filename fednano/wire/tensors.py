"""Tensors as bytes and back. The bytes travel in chunks; the spec says what they are.

RAW keeps every bit. The other encodings go by way of float32 and come back in the tensor's own type.
"""

import math

import torch
from torch import Tensor

from fednano.errors import FieldInvalid, StreamMalformed
from fednano.v1 import tensor_pb2 as pb
from fednano.wire.encodings import CODECS, ENCODING_NAMES

MAX_DIMENSIONS = 8
_DTYPES = {
    pb.DATA_TYPE_FLOAT32: torch.float32,
    pb.DATA_TYPE_FLOAT16: torch.float16,
    pb.DATA_TYPE_BFLOAT16: torch.bfloat16,
}
_DATA_TYPES = {dtype: data_type for data_type, dtype in _DTYPES.items()}


def encode_tensor(tensor: Tensor, encoding: "pb.Encoding.ValueType") -> tuple[pb.TensorSpec, memoryview]:
    """The spec and the encoded bytes; RAW bytes of a contiguous CPU tensor share its memory."""
    if encoding not in ENCODING_NAMES:
        raise FieldInvalid(f"encoding {encoding} is none of {', '.join(ENCODING_NAMES.values())}", field="encoding")
    if tensor.dtype not in _DATA_TYPES:
        raise FieldInvalid(f"tensors travel as float32, float16 or bfloat16, not {tensor.dtype}", field="data_type")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    codec = CODECS.get(encoding)
    encoded_U = flat.view(torch.uint8) if codec is None else codec.encode(flat.float())
    payload = encoded_U.numpy().data
    spec = pb.TensorSpec(
        data_type=_DATA_TYPES[tensor.dtype], shape=list(tensor.shape), encoding=encoding, size_bytes=payload.nbytes
    )
    return spec, payload


def decode_tensor(spec: pb.TensorSpec, payload: bytes | bytearray | memoryview) -> Tensor:
    """The tensor on the CPU; a RAW one shares the memory of a ``bytearray``.

    Raises FieldInvalid for a spec that contradicts itself, StreamMalformed for bytes of another length.
    """
    check_spec(spec, max_bytes=spec.size_bytes)
    if len(payload) != spec.size_bytes:
        raise StreamMalformed(f"{len(payload)} bytes came for a tensor of {spec.size_bytes}")
    dtype, shape, codec = _DTYPES[spec.data_type], tuple(spec.shape), CODECS.get(spec.encoding)
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=dtype)
    buffer = payload if isinstance(payload, bytearray) else bytearray(payload)
    if codec is None:
        return torch.frombuffer(buffer, dtype=dtype).reshape(shape)
    return codec.decode(torch.frombuffer(buffer, dtype=torch.uint8), math.prod(shape)).to(dtype).reshape(shape)


def check_spec(spec: pb.TensorSpec, max_bytes: int) -> None:
    """Raises FieldInvalid unless ``size_bytes`` is what type, shape and encoding determine, and within the bound."""
    if spec.data_type not in _DTYPES:
        raise FieldInvalid(f"data_type {spec.data_type} is not a known one", field="data_type")
    if spec.encoding not in ENCODING_NAMES:
        raise FieldInvalid(f"encoding {spec.encoding} is not a known one", field="encoding")
    if len(spec.shape) > MAX_DIMENSIONS or any(size < 0 for size in spec.shape):
        raise FieldInvalid(f"a shape has at most {MAX_DIMENSIONS} sizes, none negative", field="shape")
    expected = _size_bytes(spec)
    if spec.size_bytes != expected:
        message = f"size_bytes is {spec.size_bytes}, but type, shape and encoding make {expected}"
        raise FieldInvalid(message, field="size_bytes")
    if expected > max_bytes:
        raise FieldInvalid(f"a tensor of {expected} bytes is over the bound of {max_bytes}", field="size_bytes")


def _size_bytes(spec: pb.TensorSpec) -> int:
    element_count, codec = math.prod(spec.shape), CODECS.get(spec.encoding)
    return element_count * _DTYPES[spec.data_type].itemsize if codec is None else codec.size_bytes(element_count)
