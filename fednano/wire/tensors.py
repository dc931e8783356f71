"""Tensors as bytes and back. The bytes travel in chunks; the spec says what they are.

Encodings: RAW keeps every bit; BLOCKWISE_INT8 keeps one float32 scale (absmax / 127) for each block of 64 elements,
all scales first, then one int8 for each element. A value that is not finite makes its whole block not finite.
"""

import math

import torch
from torch import Tensor

from fednano.errors import FieldInvalid, StreamMalformed
from fednano.v1 import tensor_pb2 as pb

BLOCK_ELEMENTS = 64
MAX_DIMENSIONS = 8
_DTYPES = {
    pb.DATA_TYPE_FLOAT32: torch.float32,
    pb.DATA_TYPE_FLOAT16: torch.float16,
    pb.DATA_TYPE_BFLOAT16: torch.bfloat16,
}
_DATA_TYPES = {dtype: data_type for data_type, dtype in _DTYPES.items()}
_ENCODINGS = (pb.ENCODING_RAW, pb.ENCODING_BLOCKWISE_INT8)


def encode_tensor(tensor: Tensor, encoding: "pb.Encoding.ValueType") -> tuple[pb.TensorSpec, memoryview]:
    """The spec and the encoded bytes; RAW bytes of a contiguous CPU tensor share its memory."""
    if encoding not in _ENCODINGS:
        raise FieldInvalid(f"encoding {encoding} is none of RAW and BLOCKWISE_INT8", field="encoding")
    if tensor.dtype not in _DATA_TYPES:
        raise FieldInvalid(f"tensors travel as float32, float16 or bfloat16, not {tensor.dtype}", field="data_type")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    payload = _raw_bytes(flat) if encoding == pb.ENCODING_RAW else _quantize(flat.float())
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
    dtype, shape = _DTYPES[spec.data_type], tuple(spec.shape)
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=dtype)
    buffer = payload if isinstance(payload, bytearray) else bytearray(payload)
    if spec.encoding == pb.ENCODING_RAW:
        return torch.frombuffer(buffer, dtype=dtype).reshape(shape)
    return _dequantize(buffer, math.prod(shape)).to(dtype).reshape(shape)


def check_spec(spec: pb.TensorSpec, max_bytes: int) -> None:
    """Raises FieldInvalid unless ``size_bytes`` is what type, shape and encoding determine, and within the bound."""
    if spec.data_type not in _DTYPES:
        raise FieldInvalid(f"data_type {spec.data_type} is not a known one", field="data_type")
    if spec.encoding not in _ENCODINGS:
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
    element_count = math.prod(spec.shape)
    if spec.encoding == pb.ENCODING_RAW:
        return element_count * _DTYPES[spec.data_type].itemsize
    return 4 * _block_count(element_count) + element_count


def _block_count(element_count: int) -> int:
    return -(-element_count // BLOCK_ELEMENTS)


def _raw_bytes(flat: Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data


def _quantize(flat: Tensor) -> memoryview:
    padding = _block_count(flat.numel()) * BLOCK_ELEMENTS - flat.numel()
    blocks = torch.nn.functional.pad(flat, (0, padding)).reshape(-1, BLOCK_ELEMENTS)
    scales = blocks.abs().amax(dim=1, keepdim=True) / 127 if blocks.numel() else blocks[:, :1]
    # A scale of 0 is a block of zeros, or of numbers too small to divide by 127.
    steps = torch.where(scales > 0, blocks / scales, 0.0).round().nan_to_num(0.0).clamp(-127, 127)
    values = steps.to(torch.int8).reshape(-1)[: flat.numel()]
    return torch.cat([scales.reshape(-1).view(torch.uint8), values.view(torch.uint8)]).numpy().data


def _dequantize(buffer: bytearray, element_count: int) -> Tensor:
    block_count = _block_count(element_count)
    scales = torch.frombuffer(buffer, dtype=torch.float32, count=block_count)
    values = torch.frombuffer(buffer, dtype=torch.int8, offset=4 * block_count, count=element_count)
    return values.float() * scales.repeat_interleave(BLOCK_ELEMENTS)[:element_count]
