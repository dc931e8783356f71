"""One stream of frames to the LLM server: each frame sent or received within a deadline, failures as WireErrors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from torch import Tensor

from fednano.errors import NoProgress, PeerUnavailable, StreamMalformed
from fednano.rpc.status import from_rpc_error
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2
from fednano.wire.chunks import Assembly
from fednano.wire.tensors import check_spec, decode_tensor

RequestT = TypeVar("RequestT", pb.StreamStepsRequest, pb.DecodeRequest)
ResponseT = TypeVar("ResponseT", pb.StreamStepsResponse, pb.DecodeResponse)


class FrameStream(Generic[RequestT, ResponseT]):
    """Wraps a gRPC stream. ``progress_timeout_s`` bounds the wait for each frame, not for the whole stream."""

    def __init__(
        self, call: "grpc.aio.StreamStreamCall[RequestT, ResponseT]", *, peer: str, progress_timeout_s: float
    ) -> None:
        # Its type has no form that fits both services' stubs.
        self._call: Any = call
        self._peer = peer
        self._progress_timeout_s = progress_timeout_s

    async def send(self, frame: RequestT) -> None:
        async with self._guarded("takes no frame"):
            await self._write(frame)

    async def receive(self) -> ResponseT:
        """The next frame; PeerUnavailable where the server ended the stream instead."""
        async with self._guarded("sends no frame"):
            frame: ResponseT = await self._call.read()
        if frame is grpc.aio.EOF:
            raise PeerUnavailable(f"{self._peer} ended the stream before its answer", peer=self._peer)
        return frame

    async def receive_tensor(self, spec: tensor_pb2.TensorSpec, shape: tuple[int, ...]) -> Tensor:
        """The tensor whose chunks follow; StreamMalformed where it is announced with another shape than expected."""
        if tuple(spec.shape) != shape:
            message = f"{self._peer} announced a tensor of shape {list(spec.shape)} where {list(shape)} was expected"
            raise StreamMalformed(message, peer=self._peer)
        check_spec(spec, spec.size_bytes)
        assembly = Assembly(spec.size_bytes)
        while not assembly.is_complete:
            frame = await self.receive()
            if frame.WhichOneof("frame") != "chunk":
                raise StreamMalformed(f"{self._peer} sent another frame between chunks", peer=self._peer)
            assembly.add(frame.chunk)
        return decode_tensor(spec, assembly.payload)

    def cancel(self) -> None:
        self._call.cancel()

    async def _write(self, frame: RequestT) -> None:
        try:
            await self._call.write(frame)
        except asyncio.InvalidStateError:
            # The stream has ended already: reading says why.
            await self._call.read()
            raise PeerUnavailable(f"{self._peer} ended the stream", peer=self._peer) from None

    @asynccontextmanager
    async def _guarded(self, fault: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._progress_timeout_s):
                yield
        except TimeoutError:
            message = f"{self._peer} {fault} within {self._progress_timeout_s:g} s"
            raise NoProgress(message, peer=self._peer) from None
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._peer) from None
        except asyncio.CancelledError:
            # gRPC raises this also where it was the peer that cancelled the stream.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise PeerUnavailable(f"{self._peer} cancelled the stream", peer=self._peer) from None
