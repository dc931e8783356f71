"""Payloads in pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednano.errors import StreamMalformed
from fednano.v1 import tensor_pb2 as pb
from fednano.wire.chunks import CHUNK_BYTES, MAX_CHUNK_BYTES, Assembly, split_chunks


@settings(max_examples=20, deadline=None)
@given(size=st.sampled_from([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5]))
def test_a_payload_comes_back_whole(size: int) -> None:
    payload = bytes(index % 251 for index in range(256)) * (size // 256 + 1)
    payload = payload[:size]
    assembly = Assembly(size)
    chunks = list(split_chunks(memoryview(payload)))
    for chunk in chunks:
        assert not assembly.is_complete
        assembly.add(chunk)
    assert assembly.is_complete
    assert bytes(assembly.payload) == payload
    assert len(chunks) == -(-size // CHUNK_BYTES)


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (pb.TensorChunk(offset=0, data=b""), "0 bytes"),
        (pb.TensorChunk(offset=1, data=b"x"), "starts at 1"),
        (pb.TensorChunk(offset=-1, data=b"x"), "starts at -1"),
        (pb.TensorChunk(offset=0, data=b"12345"), "longer"),
        (pb.TensorChunk(offset=0, data=bytes(MAX_CHUNK_BYTES + 1)), "are allowed"),
    ],
)
def test_a_wrong_chunk_is_refused_and_nothing_of_it_kept(chunk: pb.TensorChunk, words: str) -> None:
    assembly = Assembly(4)
    with pytest.raises(StreamMalformed, match=words):
        assembly.add(chunk)
    assert assembly.payload == b""


def test_nothing_comes_after_the_end() -> None:
    assembly = Assembly(1)
    assembly.add(pb.TensorChunk(offset=0, data=b"x"))
    with pytest.raises(StreamMalformed, match="longer"):
        assembly.add(pb.TensorChunk(offset=1, data=b"y"))
