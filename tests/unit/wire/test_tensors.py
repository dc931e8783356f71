"""Round trips and lies of tensors on the wire."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednano.errors import FieldInvalid, StreamMalformed
from fednano.v1 import tensor_pb2 as pb
from fednano.wire.encodings import ENCODING_NAMES
from fednano.wire.tensors import check_spec, decode_tensor, encode_tensor

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SHAPES = st.lists(st.integers(0, 70), min_size=0, max_size=3).filter(lambda shape: len(shape) < 3 or shape[2] < 9)


def random_tensor(shape: list[int], seed: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10).to(dtype)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32), dtype=DTYPES)
def test_raw_keeps_every_bit(shape: list[int], seed: int, dtype: torch.dtype) -> None:
    tensor = random_tensor(shape, seed, dtype)
    spec, payload = encode_tensor(tensor, pb.ENCODING_RAW)
    back = decode_tensor(spec, bytes(payload))
    assert back.dtype == dtype
    assert torch.equal(back, tensor)
    assert spec.size_bytes == tensor.numel() * tensor.element_size()


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32), dtype=DTYPES)
def test_int8_errs_at_most_half_a_step_of_the_block(shape: list[int], seed: int, dtype: torch.dtype) -> None:
    tensor = random_tensor(shape, seed, dtype)
    spec, payload = encode_tensor(tensor, pb.ENCODING_BLOCKWISE_INT8)
    back = decode_tensor(spec, payload)
    assert back.shape == tensor.shape
    assert spec.size_bytes == payload.nbytes == tensor.numel() + 4 * -(-tensor.numel() // 64)
    # bfloat16 rounds the restored value once more.
    rounding = torch.finfo(dtype).eps
    for start in range(0, tensor.numel(), 64):
        wanted = tensor.reshape(-1)[start : start + 64].float()
        error = (back.reshape(-1)[start : start + 64].float() - wanted).abs().max()
        assert error <= wanted.abs().max() * (0.5 / 127 * 1.001 + rounding)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("encoding", ENCODING_NAMES)
def test_a_value_that_is_not_finite_is_never_hidden(value: float, encoding: "pb.Encoding.ValueType") -> None:
    spec, payload = encode_tensor(torch.tensor([1.0] * 100 + [value, 2.0]), encoding)
    assert not torch.isfinite(decode_tensor(spec, payload)).all()


def test_the_scales_come_first_as_the_contract_says() -> None:
    _, payload = encode_tensor(torch.tensor([127.0, -127.0, 1.0]), pb.ENCODING_BLOCKWISE_INT8)
    assert bytes(payload) == b"\x00\x00\x80\x3f" + bytes([127, 129, 1])


@pytest.mark.parametrize(
    ("lie", "field"),
    [
        ({"data_type": 0}, "data_type"),
        ({"data_type": 77}, "data_type"),
        ({"encoding": 0}, "encoding"),
        ({"shape": [-1, -4]}, "shape"),
        ({"shape": [1] * 9}, "shape"),
        ({"shape": [1 << 40, 1 << 40]}, "size_bytes"),
        ({"size_bytes": 15}, "size_bytes"),
        ({"size_bytes": -16}, "size_bytes"),
        ({"shape": [100], "size_bytes": 400}, "size_bytes"),
    ],
)
def test_a_spec_that_lies_is_refused_with_its_field(lie: dict[str, object], field: str) -> None:
    honest = {"data_type": pb.DATA_TYPE_FLOAT32, "shape": [2, 2], "encoding": pb.ENCODING_RAW, "size_bytes": 16}
    check_spec(pb.TensorSpec(**honest), max_bytes=16)  # type: ignore[arg-type]
    with pytest.raises(FieldInvalid) as refused:
        check_spec(pb.TensorSpec(**(honest | lie)), max_bytes=16)  # type: ignore[arg-type]
    assert refused.value.facts["field"] == field


def test_bytes_of_another_length_are_refused() -> None:
    spec, payload = encode_tensor(torch.ones(4), pb.ENCODING_RAW)
    with pytest.raises(StreamMalformed, match="15 bytes"):
        decode_tensor(spec, bytes(payload)[:15])


def test_other_types_are_not_sent() -> None:
    with pytest.raises(FieldInvalid, match="float64"):
        encode_tensor(torch.ones(2, dtype=torch.float64), pb.ENCODING_RAW)
