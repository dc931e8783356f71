"""How elements become fewer bytes and back: one codec for each encoding that may change values, as tensor.proto says.

n: elements of a tensor   K: blocks of 64 elements   U: bytes
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fednano.v1 import tensor_pb2 as pb

BLOCK_ELEMENTS = 64
SCALE_BYTES = 4
# What people call the encodings, in flags and in metrics.
ENCODINGS_BY_NAME: "dict[str, pb.Encoding.ValueType]" = {
    "raw": pb.ENCODING_RAW,
    "bfloat16": pb.ENCODING_BFLOAT16,
    "float16": pb.ENCODING_FLOAT16,
    "int8": pb.ENCODING_BLOCKWISE_INT8,
}
ENCODING_NAMES: "dict[pb.Encoding.ValueType, str]" = {encoding: name for name, encoding in ENCODINGS_BY_NAME.items()}
# frexp's exponent of a number in [2^14, 2^15).
_FLOAT16_EXPONENT = 15
# Of the smallest normal float32.
_LEAST_EXPONENT = -126


@dataclass(frozen=True, kw_only=True)
class Codec:
    """``encode`` takes contiguous float32 [n] to bytes [U]; ``decode`` takes them back, given n.

    A value that is not finite comes back as one that is not, and so may its whole block or tensor.
    """

    size_bytes: Callable[[int], int]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, int], Tensor]


def block_count(element_count: int) -> int:
    return -(-element_count // BLOCK_ELEMENTS)


def _encode_bfloat16(values_n: Tensor) -> Tensor:
    return values_n.to(torch.bfloat16).view(torch.uint8)


def _decode_bfloat16(bytes_U: Tensor, element_count: int) -> Tensor:
    return bytes_U.view(torch.bfloat16)[:element_count].float()


def _encode_float16(values_n: Tensor) -> Tensor:
    """A power of two divides without rounding, so that rounding to float16 is the only error."""
    lowest, highest = torch.aminmax(values_n) if len(values_n) else (torch.zeros(()), torch.zeros(()))
    largest = torch.maximum(-lowest, highest)
    exponent = torch.frexp(largest).exponent - _FLOAT16_EXPONENT
    scale = torch.ldexp(torch.ones(()), exponent.clamp(min=_LEAST_EXPONENT))
    scale = torch.where((largest > 0) & torch.isfinite(largest), scale, 1.0).reshape(1)
    return torch.cat([scale.view(torch.uint8), (values_n / scale).to(torch.float16).view(torch.uint8)])


def _decode_float16(bytes_U: Tensor, element_count: int) -> Tensor:
    scale, steps_n = bytes_U[:SCALE_BYTES].view(torch.float32), bytes_U[SCALE_BYTES:].view(torch.float16)
    return steps_n[:element_count].float().mul_(scale)


def _encode_int8(values_n: Tensor) -> Tensor:
    missing = -len(values_n) % BLOCK_ELEMENTS
    padded_n = torch.nn.functional.pad(values_n, (0, missing)) if missing else values_n
    blocks_KB = padded_n.reshape(-1, BLOCK_ELEMENTS)
    scales_K = blocks_KB.abs().amax(dim=1) / 127
    if not bool(torch.isfinite(scales_K).all()):
        # Its scale says that a block is spoiled; no number is left that int8 has no place for.
        blocks_KB = blocks_KB.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    # A scale of 0 is a block of zeros, or of numbers too small to divide by 127.
    divisors_K = torch.where((scales_K > 0) & torch.isfinite(scales_K), scales_K, 1.0)
    steps_KB = (blocks_KB / divisors_K[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return torch.cat([scales_K.view(torch.uint8), steps_KB.reshape(-1)[: len(values_n)].view(torch.uint8)])


def _decode_int8(bytes_U: Tensor, element_count: int) -> Tensor:
    blocks = block_count(element_count)
    scales_K = bytes_U[: SCALE_BYTES * blocks].view(torch.float32)
    values = torch.zeros(blocks * BLOCK_ELEMENTS)
    values[:element_count] = bytes_U[SCALE_BYTES * blocks :].view(torch.int8)
    values.view(blocks, BLOCK_ELEMENTS).mul_(scales_K[:, None])
    return values[:element_count]


CODECS: "dict[pb.Encoding.ValueType, Codec]" = {
    pb.ENCODING_BFLOAT16: Codec(size_bytes=lambda count: 2 * count, encode=_encode_bfloat16, decode=_decode_bfloat16),
    pb.ENCODING_FLOAT16: Codec(
        size_bytes=lambda count: SCALE_BYTES + 2 * count, encode=_encode_float16, decode=_decode_float16
    ),
    pb.ENCODING_BLOCKWISE_INT8: Codec(
        size_bytes=lambda count: SCALE_BYTES * block_count(count) + count, encode=_encode_int8, decode=_decode_int8
    ),
}
