"""The frames of one stream: what is counted, and what is not taken."""

from collections.abc import AsyncIterator, Sequence

import pytest
import torch
from prometheus_client import CollectorRegistry

from fednano.errors import FieldInvalid
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.chunks import split_chunks
from fednano.wire.encodings import ENCODING_NAMES
from fednano.wire.tensors import encode_tensor
from services.server.frames import Frames
from services.server.metrics import ServerMetrics

StepFrames = Frames[pb.StreamStepsRequest, pb.StreamStepsResponse]


class Written:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.messages: list[pb.StreamStepsResponse] = []

    async def write(self, message: pb.StreamStepsResponse, /) -> None:
        self.messages.append(message)


async def requests_of(payload: memoryview) -> AsyncIterator[pb.StreamStepsRequest]:
    for chunk in split_chunks(payload):
        yield pb.StreamStepsRequest(chunk=chunk)


def frames_of(payload: memoryview, registry: CollectorRegistry) -> StepFrames:
    return Frames(requests_of(payload), Written(), ServerMetrics(registry), progress_s=5.0, idle_s=5.0)


def counted(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    samples: Sequence[object] = [sample for family in registry.collect() for sample in family.samples]
    return {
        (sample.labels["direction"], sample.labels["encoding"]): sample.value  # type: ignore[attr-defined]
        for sample in samples
        if sample.name == "fednano_server_tensor_bytes_total"  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("encoding", ENCODING_NAMES)
async def test_tensor_bytes_are_counted_by_direction_and_encoding(encoding: "tpb.Encoding.ValueType") -> None:
    registry = CollectorRegistry()
    spec, payload = encode_tensor(torch.ones(300, 1000), encoding)
    frames = frames_of(payload, registry)
    frames.agree(encoding)
    assert await frames.payload(spec) == payload
    assert b"".join(chunk.data for chunk in frames.chunks(payload[:1000])) == payload[:1000]
    name = ENCODING_NAMES[encoding]
    assert counted(registry) == {("received", name): spec.size_bytes, ("sent", name): 1000}


async def test_an_exact_tensor_is_welcome_whatever_was_agreed_and_any_other_is_not() -> None:
    for encoding in (tpb.ENCODING_RAW, tpb.ENCODING_FLOAT16):
        spec, payload = encode_tensor(torch.ones(10), encoding)
        frames = frames_of(payload, CollectorRegistry())
        frames.agree(tpb.ENCODING_BFLOAT16)
        if encoding == tpb.ENCODING_RAW:
            assert await frames.payload(spec) == payload
        else:
            with pytest.raises(FieldInvalid, match="came as float16, but this session was granted bfloat16"):
                await frames.payload(spec)


async def test_nothing_is_counted_of_a_tensor_that_does_not_come_whole() -> None:
    registry = CollectorRegistry()
    spec, payload = encode_tensor(torch.ones(10), tpb.ENCODING_RAW)
    frames = frames_of(payload[:39], registry)
    with pytest.raises(Exception, match="39 of 40 bytes"):
        await frames.payload(spec)
    assert counted(registry) == {}
