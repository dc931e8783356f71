"""What each lossy encoding keeps of a tensor: exact cases, bounds of the error, and that nothing else is lost.

n: elements
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednano.v1 import tensor_pb2 as pb
from fednano.wire.encodings import CODECS, ENCODING_NAMES, ENCODINGS_BY_NAME
from fednano.wire.tensors import decode_tensor, encode_tensor

LOSSY = sorted(CODECS)
LARGEST = torch.finfo(torch.float32).max
SEEDS, COUNTS = st.integers(0, 2**32), st.integers(0, 300)
# From gradients of long training to the edge of what is not finite any more.
MAGNITUDES = st.floats(-100, 37).map(lambda exponent: 10.0**exponent)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def values(count: int, seed: int, magnitude: float = 1.0) -> Tensor:
    """Normal numbers whose spread covers eight powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** (torch.rand(count, generator=generator) * 8 - 8)
    return (torch.randn(count, generator=generator).clamp(-3, 3) * spread * magnitude).float()


def there_and_back(tensor: Tensor, encoding: "pb.Encoding.ValueType") -> Tensor:
    spec, payload = encode_tensor(tensor, encoding)
    assert spec.size_bytes == payload.nbytes
    back = decode_tensor(spec, bytearray(payload))
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
    return back


def test_every_encoding_of_the_contract_has_a_name() -> None:
    assert {0, *ENCODING_NAMES} == set(pb.Encoding.values())
    assert {ENCODINGS_BY_NAME[name] for name in ENCODING_NAMES.values()} == set(ENCODING_NAMES)


@pytest.mark.parametrize("encoding", ENCODING_NAMES)
@settings(max_examples=30, deadline=None)
@given(count=COUNTS, seed=SEEDS)
def test_what_came_back_goes_again_without_further_loss(
    encoding: "pb.Encoding.ValueType", count: int, seed: int
) -> None:
    once = there_and_back(values(count, seed), encoding)
    again = there_and_back(once, encoding)
    # An int8 scale is computed from its block, and may come out one unit in the last place off.
    tolerance = 1e-6 if encoding == pb.ENCODING_BLOCKWISE_INT8 else 0.0
    torch.testing.assert_close(again, once, rtol=tolerance, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(count=COUNTS, seed=SEEDS, magnitude=MAGNITUDES)
def test_bfloat16_rounds_each_value_to_eight_bits(count: int, seed: int, magnitude: float) -> None:
    sent = values(count, seed, magnitude)
    back = there_and_back(sent, pb.ENCODING_BFLOAT16)
    least = 2.0**-134
    assert ((back - sent).abs() <= sent.abs() * 2.0**-8 + least).all()
    assert torch.equal(back, sent.to(torch.bfloat16).float())


@settings(max_examples=60, deadline=None)
@given(count=COUNTS, seed=SEEDS, magnitude=MAGNITUDES)
def test_float16_rounds_to_eleven_bits_far_below_the_largest_too(count: int, seed: int, magnitude: float) -> None:
    sent = values(count, seed, magnitude)
    back = there_and_back(sent, pb.ENCODING_FLOAT16)
    largest = sent.abs().max().item() if count else 0.0
    # Below 2^-28 of the largest, steps are even instead of relative: half of 2^-24 of a scale of at least 2^-126.
    step = max(largest * 2.0**-38, 2.0**-150)
    assert ((back - sent).abs() <= sent.abs() * 2.0**-11 + step).all()


def test_float16_keeps_gradients_that_plain_float16_loses() -> None:
    sent = torch.tensor([3e-9, -1e-12, 2e-20])
    assert sent.half().count_nonzero() == 0
    torch.testing.assert_close(there_and_back(sent, pb.ENCODING_FLOAT16)[:2], sent[:2], rtol=2.0**-11, atol=0.0)


def test_float16_holds_what_is_over_its_own_range() -> None:
    sent = torch.tensor([1e6, -65521.0, 1.0])
    assert not torch.isfinite(sent.half()).all()
    torch.testing.assert_close(there_and_back(sent, pb.ENCODING_FLOAT16), sent, rtol=2.0**-11, atol=0.0)


@pytest.mark.parametrize("exponent", [-149, -140, -127, -126, -112, -24, -1, 0, 1, 13, 14, 15, 16, 100, 127])
@pytest.mark.parametrize("encoding", LOSSY)
def test_powers_of_two_are_exact(encoding: "pb.Encoding.ValueType", exponent: int) -> None:
    sent = torch.tensor([math.ldexp(1.0, exponent), -math.ldexp(1.0, exponent), 0.0])
    if encoding == pb.ENCODING_BFLOAT16 and exponent < -133:
        assert (there_and_back(sent, encoding).abs() <= 2.0**-133).all()
    elif encoding == pb.ENCODING_BLOCKWISE_INT8 and exponent < -126:
        assert ((there_and_back(sent, encoding) - sent).abs() <= sent.abs()).all()
    else:
        torch.testing.assert_close(there_and_back(sent, encoding), sent, rtol=1e-6, atol=0.0)


def test_the_float16_scale_comes_first_as_the_contract_says() -> None:
    _, payload = encode_tensor(torch.tensor([1.0, -0.75]), pb.ENCODING_FLOAT16)
    # 2^-14 as a float32; 2^14 and -0.75 * 2^14 as float16, all with the low byte first.
    assert bytes(payload) == bytes([0, 0, 0x80, 0x38]) + bytes([0x00, 0x74]) + bytes([0x00, 0xF2])


def test_bfloat16_is_the_upper_half_of_a_float32_as_the_contract_says() -> None:
    _, payload = encode_tensor(torch.tensor([1.0, -2.5]), pb.ENCODING_BFLOAT16)
    assert bytes(payload) == bytes([0x80, 0x3F, 0x20, 0xC0])


@settings(max_examples=60, deadline=None)
@given(count=COUNTS, seed=SEEDS, magnitude=st.floats(-30, 37).map(lambda exponent: 10.0**exponent))
def test_int8_errs_by_half_a_step_of_each_block_and_never_more(count: int, seed: int, magnitude: float) -> None:
    sent = values(count, seed, magnitude)
    back = there_and_back(sent, pb.ENCODING_BLOCKWISE_INT8)
    for start in range(0, count, 64):
        block = sent[start : start + 64]
        bound = block.abs().max() * (0.5 / 127 * 1.0001)
        assert (back[start : start + 64] - block).abs().max() <= bound


def test_int8_keeps_a_small_block_beside_a_large_one() -> None:
    sent = torch.cat([torch.full((64,), 1e6), torch.full((64,), 1e-6)])
    torch.testing.assert_close(there_and_back(sent, pb.ENCODING_BLOCKWISE_INT8), sent, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("encoding", LOSSY)
def test_zeros_and_nothing_come_back_as_they_were(encoding: "pb.Encoding.ValueType") -> None:
    for sent in (torch.zeros(130), torch.zeros(0), torch.zeros(3, 0, 2), torch.zeros(())):
        assert torch.equal(there_and_back(sent, encoding), sent)


@pytest.mark.parametrize("encoding", LOSSY)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_same_bytes_each_time_also_for_what_is_not_finite(encoding: "pb.Encoding.ValueType", value: float) -> None:
    sent = values(100, seed=1)
    sent[70] = value
    payloads = {bytes(encode_tensor(sent, encoding)[1]) for _ in range(3)}
    assert len(payloads) == 1
    assert not torch.isfinite(there_and_back(sent, encoding)).all()


@pytest.mark.parametrize("encoding", LOSSY)
def test_a_transposed_tensor_goes_in_its_own_order(encoding: "pb.Encoding.ValueType") -> None:
    sent = values(64 * 5, seed=3).reshape(64, 5)
    transposed = there_and_back(sent.T, encoding)
    assert torch.equal(transposed, there_and_back(sent.T.contiguous(), encoding))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("encoding", LOSSY)
def test_narrower_types_come_back_as_themselves(encoding: "pb.Encoding.ValueType", dtype: torch.dtype) -> None:
    sent = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype)
    back = there_and_back(sent, encoding)
    if (encoding, dtype) in ((pb.ENCODING_BFLOAT16, torch.bfloat16), (pb.ENCODING_FLOAT16, torch.float16)):
        assert torch.equal(back, sent)
    torch.testing.assert_close(back, sent, rtol=0.01, atol=0.02)
